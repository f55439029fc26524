"""Certify a labelled image data set with one process or many, and report the results.

    diffusers-ndc evaluate --model MODEL --dataset DATASET --radii 0.25 0.5 --stop-early --output runs/a
    accelerate launch --multi_gpu --num_processes 8 -m diffusers_ndc evaluate ...

Each finished image is one line in --output. To resume a run that was killed, give the same command again, with any
number of processes. --config names a YAML file with the same keys. --task names an evaluation task, such as
cifar10-l2, which fixes images, radii and noisy copies, so that results are comparable. `diffusers-ndc plan` with the
same options (or --plan) starts no run: it prints what the run would prove and cost, and which sigma would be the best,
from a short trial. At the end --output holds report.md, report.json, two pictures and a model card (README.md).
`diffusers-ndc report` makes the report again from the records alone, with several runs in one picture and a table for
each task.
"""

import sys
from collections.abc import Sequence

from ..common.extras import require
from .arguments import COMMON
from .hub import check_on_hub


def main(words: Sequence[str], command: str = "evaluate") -> int:
    require(command, "eval")

    from ..evaluation.settings_parser import parse

    prog = f"diffusers-ndc {command}"
    settings = parse(words, f"{__doc__}\n{COMMON}", prog)
    try:
        settings.check()
        settings.check_places()
        for name, file in {"model": "model_index.json", "classifier": "config.json"}.items():
            if getattr(settings, name) is not None:
                check_on_hub(f"--{name}", getattr(settings, name), file)
    except (TypeError, ValueError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    if settings.plan:
        from ..evaluation.plan import plan_run

        plan = plan_run(settings)
        text = None if plan is None else plan.to_markdown()
    else:
        from ..evaluation.report import to_markdown
        from ..evaluation.run import evaluate

        try:
            report = evaluate(settings)
        except KeyboardInterrupt:
            print("stopped: finished images are kept; give the same command again to continue", file=sys.stderr)
            return 1
        text = None if report is None else to_markdown(report)
    if text is not None:  # on the main process
        print(text)
    return 0
