"""Certify a labelled image data set with one process or many, and report the results.

    accelerate launch --multi_gpu --num_processes 8 examples/evaluate.py --model examples/mnist \\
        --dataset examples/mnist/data --limit 100 --radii 0.25 0.5 --stop-early --output runs/mnist

or plain `python examples/evaluate.py ...` for one process. Each finished image is one line in --output. To resume a
run that was killed, give the same command again, with any number of processes. --config names a YAML file with the
same keys. --task names an evaluation task, such as cifar10-l2, which fixes images, radii and noisy copies, so that
results are comparable. --plan starts no run: it prints what the run would prove and cost, and which sigma would be the
best, from a short trial. At the end --output holds report.md, report.json, report.html, two pictures and a model card.
The report can be made again from the records alone, with several runs in one picture and a table for each task:

    python -m diffusers_ndc.evaluation.report runs/mnist runs/others --output compared
"""

import sys

from diffusers_ndc.evaluation.plan import plan_run
from diffusers_ndc.evaluation.report import to_markdown
from diffusers_ndc.evaluation.run import evaluate
from diffusers_ndc.evaluation.settings import parse


def main():
    settings = parse(description=__doc__)
    try:
        result = plan_run(settings) if settings.plan else evaluate(settings)
    except (FloatingPointError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: finished images are kept; give the same command again to continue")
    if result is not None:
        print(result.to_markdown() if settings.plan else to_markdown(result))


if __name__ == "__main__":
    main()
