"""Checkpoints by their address: whole files, checked, or none."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import hub as hub_server
from helpers.edm_files import golden as edm_golden
from helpers.edm_files import save_published
from helpers.openai_files import flags, golden, save_golden
from helpers.web import Served
from helpers.web import web as web
from huggingface_hub import constants, file_download
from safetensors.torch import save

from diffusers_ndc import NoisedDiffusionClassifierPipeline
from diffusers_ndc.checkpoints import OpenAIArguments, read_checkpoint, read_openai_checkpoint
from diffusers_ndc.checkpoints.downloads import Location, local_copy, locate


CONTENT = bytes(range(256)) * 40
OTHER = CONTENT[::-1]


def get(address):
    """The bytes that an address leads to."""
    with local_copy(locate(address, "path", (".pt", ".pkl", ".json", ".safetensors"))) as file:
        return file.read_bytes()


def unverified(web, name="file.pt", scheme="http"):
    """A file of the web whose SHA-256 is not known, as those with https:// may be."""
    return Location(f"{web.address}/{name}", scheme, name, None, "`path`")


def cached(kind="checkpoint.*"):
    """Files of the web in the cache."""
    return sorted(Path(constants.HF_ASSETS_CACHE).rglob(kind))


def test_a_file_is_downloaded_once(web):
    address = web.add("some/file.pt", CONTENT)
    assert get(address) == get(address) == CONTENT
    assert [method for method, _ in web.requests] == ["HEAD", "GET"]
    assert len(cached()) == 1 and not cached("*.incomplete")
    assert not any("authorization" in headers for _, headers in web.requests)


DOWNLOAD = """
import sys
from huggingface_hub import constants
from diffusers_ndc.checkpoints.downloads import local_copy, locate

constants.DOWNLOAD_CHUNK_SIZE = 500
with local_copy(locate(sys.argv[1], "path", (".pt",))):
    pass
"""


@pytest.mark.slow
def test_a_download_goes_on_after_the_process_was_killed(web):
    content, stall = CONTENT * 40, threading.Event()
    address = web.add("file.pt", content, stall=stall)
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ASSETS_CACHE": constants.HF_ASSETS_CACHE}
    with subprocess.Popen([sys.executable, "-c", DOWNLOAD, address], env=environment) as process:
        try:
            while sum(file.stat().st_size for file in cached("*.incomplete")) < len(content) // 4:
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.kill()
    stall.set()
    assert not cached() and get(address) == content
    first, second = web.ranges
    assert first is None and int(second.removeprefix("bytes=").removesuffix("-")) >= len(content) // 4


def test_another_hash_is_another_file(web):
    first = web.add("file.pt", CONTENT)
    assert get(first) == CONTENT
    second = web.add("file.pt", OTHER, etag='"2"')
    assert get(second) == OTHER and get(first) == CONTENT and len(cached()) == 2


def test_a_download_that_breaks_off_goes_on(web):
    address = web.add("file.pt", CONTENT, breaks=[3000, 2000])
    assert get(address) == CONTENT
    assert web.ranges == [None, "bytes=3000-", "bytes=5000-"]


FOR_GOOD = [3000] + [0] * 20
"""A server that sends 3000 bytes, and then nothing any more."""


@pytest.fixture
def broken_off(web):
    """The address of a file of which 3000 bytes are in the cache."""
    address = web.add("file.pt", CONTENT, breaks=list(FOR_GOOD))
    with pytest.raises(OSError, match="`path` .*file.pt.* must be a file that can be downloaded, got an error"):
        get(address)
    assert not cached() and [file.stat().st_size for file in cached("*.incomplete")] == [3000]
    web.requests.clear()
    return address


def test_the_next_try_goes_on_where_it_broke_off(broken_off, web):
    web.files["file.pt"] = Served(CONTENT)
    assert get(broken_off) == CONTENT and web.ranges == ["bytes=3000-"] and not cached("*.incomplete")


@pytest.mark.parametrize("etag", ['"2"', "", 'W/"1"'])
def test_no_file_is_made_of_two_versions(etag, broken_off, web):
    """The part of another version is not used, nor one whose version is not known for certain."""
    web.files["file.pt"] = Served(CONTENT, etag=etag)
    assert get(broken_off) == CONTENT and web.ranges == [None] and not cached("*.incomplete")


def test_no_file_is_made_of_two_versions_that_change_meanwhile(broken_off, web):
    web.files["file.pt"] = Served(CONTENT, then=Served(OTHER, etag='"2"'))
    with pytest.raises(ValueError, match="must have the SHA-256"):
        get(broken_off)
    assert web.ranges == ["bytes=3000-"] and not cached() and not cached("*.incomplete")
    with local_copy(unverified(web)) as file:
        assert file.read_bytes() == OTHER  # as a whole, since the range was asked for one version only


@pytest.mark.parametrize(
    "lie",
    [
        {"sent": len(CONTENT) + 100},
        {"sent": len(CONTENT) - 100},
        {"stated": len(CONTENT) + 100},
        {"stated": len(CONTENT) - 100},
        {"stated": 0},
        {"stated": -1},
        {"stated": 10**15},
    ],
    ids=str,
)
def test_a_server_that_lies_about_the_size_leaves_no_file(lie, web):
    web.add("file.pt", CONTENT, **lie)
    for _ in range(2):
        with pytest.raises(OSError, match="`path` must be a file .*got"), local_copy(unverified(web)):
            pass
        assert not cached()
    web.add("file.pt", CONTENT, etag='"2"')
    with local_copy(unverified(web)) as file:
        assert file.read_bytes() == CONTENT


def test_other_bytes_are_refused_and_leave_no_file(web):
    address = web.add("file.pt", CONTENT)
    web.files["file.pt"] = Served(OTHER)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=f"`path` .*file.pt.* must have the SHA-256 {address[-64:]}, got a file with"
        ):
            get(address)
        assert not cached() and not cached("*.incomplete")
    web.files["file.pt"] = Served(CONTENT)
    assert get(address) == CONTENT


def test_a_file_that_changed_in_the_cache_is_refused_and_downloaded_again(web):
    address = web.add("file.pt", CONTENT)
    get(address)
    cached()[0].write_bytes(OTHER)
    with pytest.raises(ValueError, match="must have the SHA-256 .* It has been removed"):
        get(address)
    assert get(address) == CONTENT


def test_an_unverified_file_that_cannot_be_read_leaves_the_cache(web):
    """A size that both answers state too small cannot be noticed but by reading."""
    web.add("file.pt", CONTENT, stated=5000, sent=5000)
    with pytest.raises(ValueError, match="cannot be read"), local_copy(unverified(web)):
        raise ValueError("cannot be read")
    assert not cached()
    web.add("file.pt", CONTENT)
    with local_copy(unverified(web)) as file:
        assert file.read_bytes() == CONTENT
    with pytest.raises(OSError, match="disk"), local_copy(unverified(web)):
        raise OSError("disk")
    assert cached()


def test_a_verified_file_stays_in_the_cache(web):
    address = web.add("file.pt", CONTENT)
    with pytest.raises(ValueError, match="no network"), local_copy(locate(address, "path", (".pt",))):
        raise ValueError("no network")
    assert len(cached()) == 1


@pytest.mark.parametrize(
    "status, error", [(404, FileNotFoundError), (410, FileNotFoundError), (403, OSError), (500, OSError)]
)
def test_files_that_the_server_does_not_give(status, error, web):
    address = web.add("file.pt", CONTENT, status=status)
    with pytest.raises(error, match=rf"`path` .*file.pt.* must be a file .*got the status {status}"):
        get(address)
    assert not cached()


def test_https_does_not_become_http(web):
    web.add("file.pt", CONTENT)
    with pytest.raises(OSError, match="must stay with https://"), local_copy(unverified(web, scheme="https")):
        pass
    assert not cached()


def test_without_a_server_or_offline_only_the_cache_serves(web, monkeypatch):
    address = web.add("file.pt", CONTENT)
    get(address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(address) == CONTENT
    with pytest.raises(OSError, match="offline mode is enabled"):
        get(web.add("other.pt", CONTENT))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="must be a file that can be downloaded"):
        get(f"http://127.0.0.1:9/file.pt#sha256={'0' * 64}")


def test_many_who_ask_at_once_download_it_once(web):
    address = web.add("file.pt", CONTENT)
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(address))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 6 and len(web.ranges) == 1


@pytest.mark.parametrize(
    "address, match",
    [
        ("http://127.0.0.1/file.pt", "must begin with https://"),
        ("ftp://127.0.0.1/file.pt", "must be a path, or an address of the form"),
        ("file:///etc/file.pt", "must be a path, or an address of the form"),
        ("s3://bucket/file.pt", "must be a path, or an address of the form"),
        ("https:///file.pt", "must be a path, or an address of the form"),
        ("https://127.0.0.1/", "must end in one of"),
        ("https://127.0.0.1/file.pt/", "must end in one of .*got ''"),
        ("https://127.0.0.1/file.exe?name=file.pt", "must end in one of .*got '.exe'"),
        ("https://127.0.0.1/file.pt#sha256=12", "64 hexadecimal digits"),
        ("https://127.0.0.1/file.pt#md5=" + "0" * 64, "64 hexadecimal digits"),
        ("https://127.0.0.1/file.pt#" + "0" * 64, "64 hexadecimal digits"),
        ("hf://owner", "must have the form"),
        ("hf://owner/repository", "must have the form"),
        ("hf://owner/repository/", "must have the form"),
        ("hf://owner/repository@/file.pt", "must have the form"),
        ("hf://owner/repository/../../file.pt", "must have the form"),
        ("hf://owner/repository/file.exe", "must end in one of"),
    ],
)
def test_refuses_other_addresses_before_it_asks_anybody(address, match):
    with pytest.raises(ValueError, match=f"`path` .*{match}"):
        locate(address, "path", (".pt",))


def test_a_query_is_sent_but_not_shown(web):
    address = web.add("file.pt", CONTENT).replace("file.pt", "file.pt?signature=secret")
    location = locate(address, "path", (".pt",))
    assert "secret" in location.path and "secret" not in location.source
    assert get(address) == CONTENT


@torch.no_grad()
def test_openai_checkpoints_by_their_address(web, tmp_path):
    data = {name: save_golden(tmp_path / f"{name}.pt", name).read_bytes() for name in "dc"}
    addresses = [web.add(f"jul-2021/{name}.pt", content) for name, content in data.items()]
    other = {"num_heads": 4, "use_new_attention_order": False, "rescale_timesteps": True}
    pipe = NoisedDiffusionClassifierPipeline.from_openai_checkpoint(
        *addresses, **flags("d"), unconditional_arguments=other
    )
    numbers = golden("d")[1]
    output = pipe.unet(numbers["in.x"], numbers["in.t"], numbers["in.labels"]).sample
    torch.testing.assert_close(output, numbers["out.raw"], rtol=0, atol=2e-5)
    assert len(web.ranges) == 2
    with pytest.raises(ValueError, match="`num_heads` or `num_head_channels`, .*must be given for `path` .*d.pt"):
        NoisedDiffusionClassifierPipeline.from_openai_checkpoint(addresses[0], image_size=16)
    assert len(cached()) == 2, "a missing argument must not cost the download"


def test_a_damaged_checkpoint_of_the_web_leaves_the_cache(web, monkeypatch, tmp_path):
    web.add("file.pt", save_golden(tmp_path / "e.pt", "e").read_bytes()[:-1000])
    monkeypatch.setattr("diffusers_ndc.checkpoints.openai.locate", lambda *_: unverified(web))
    with pytest.raises(ValueError, match="`path` must be a state dict, got a file that cannot be read"):
        read_openai_checkpoint("https://127.0.0.1/file.pt")
    assert not cached()


def test_edm_checkpoints_by_their_address(web, tmp_path):
    checkpoint = edm_golden("d")[0]
    address = web.add("edm.pkl", save_published(tmp_path / "edm.pkl", checkpoint).read_bytes())
    read = read_checkpoint(address)
    assert all(torch.equal(read.state_dict[name], weight.float()) for name, weight in checkpoint.state_dict.items())
    with pytest.raises(ValueError, match="`path` .*must begin with https://.* .json file that belongs to it"):
        read_checkpoint(web.add("edm.pt", b"x"))


@pytest.fixture
def repository(hub):
    """A repository with small networks: two revisions, a large file that the Hub knows the hash of, and others."""
    small = edm_golden("d")[0]
    description = json.dumps({"class_name": small.class_name, "init_kwargs": small.init_kwargs}).encode()
    first = {"edm/network.safetensors": save({k: v.contiguous() for k, v in small.state_dict.items()})}
    hub.add("me/networks", first | {"edm/network.json": description})
    hub.add("me/networks", {"openai/e.safetensors": save(golden("e")[0])})
    return "hf://me/networks"


def test_checkpoints_of_the_hub(repository):
    small = edm_golden("d")[0]
    for revision in ("", "@main", f"@{1:040x}", f"@{2:040x}"):
        read = read_checkpoint(f"{repository}{revision}/edm/network.safetensors")
        assert read.init_kwargs == small.init_kwargs and read.state_dict.keys() == small.state_dict.keys()
    read = read_openai_checkpoint(f"{repository}/openai/e.safetensors", OpenAIArguments(**flags("e")))
    assert all(torch.equal(read.state_dict[name], weight) for name, weight in golden("e")[0].items())


def test_files_that_the_hub_does_not_have(repository, hub, monkeypatch):
    for address in (
        f"{repository}/nothing.pt",
        f"{repository}@{1:040x}/openai/e.safetensors",
        f"{repository}@{9:040x}/openai/e.safetensors",
        "hf://me/nothing/openai/e.safetensors",
    ):
        with pytest.raises(FileNotFoundError, match="`path` .*must be a file of the Hub, got none there"):
            read_openai_checkpoint(address)
    with pytest.raises(FileNotFoundError, match="`path` .*must have 'e.json' beside it"):
        read_checkpoint(f"{repository}/openai/e.safetensors")
    hub.broken = True
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    with pytest.raises(OSError, match="`path` .*must be a file that can be downloaded"):
        read_openai_checkpoint("hf://me/other/e.safetensors")


def test_other_bytes_of_the_hub_are_refused(repository, hub, monkeypatch):
    """Of a large file the Hub states the hash; of every file it may be given."""
    address = f"{repository}/openai/e.safetensors"
    with pytest.raises(ValueError, match="must have the SHA-256 0000"):
        read_openai_checkpoint(f"{address}#sha256={'0' * 64}")
    content = hub.files("me/networks")["openai/e.safetensors"]
    changed = content[:-4] + bytes(4)
    stated = hub_server.oid_of("e.safetensors", content)
    hub.add("me/networks", {"openai/e.safetensors": changed})
    monkeypatch.setattr(hub_server, "oid_of", lambda path, data: stated)
    with pytest.raises(ValueError, match=f"must have the SHA-256 {stated}"):
        read_openai_checkpoint(address)
    assert not [file for file in Path(constants.HF_HUB_CACHE).rglob("blobs/*")]
    monkeypatch.undo()


class Evil:
    def __reduce__(self):
        return eval, ("open('MARK', 'w')",)


def test_a_hostile_pickle_of_the_hub_is_not_run_and_leaves_the_cache(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.add("me/evil", {"network.pkl": pickle.dumps({"ema": Evil()}), "network.pt": pickle.dumps(Evil())})
    with pytest.raises(ValueError, match="`path` .*names builtins.eval, which no EDM network needs"):
        read_checkpoint("hf://me/evil/network.pkl")
    with pytest.raises(ValueError, match="`path` .*cannot be read.*Nothing in it was run"):
        read_openai_checkpoint("hf://me/evil/network.pt")
    assert not (tmp_path / "MARK").exists()
    assert not [file for file in Path(constants.HF_HUB_CACHE).rglob("blobs/*")]
