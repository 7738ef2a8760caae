"""The registry: versions, aliases, what is refused, and comparisons of two versions."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shipped_folders import score_table, shipped, statement
from tunetrial import cli
from tunetrial.cli import registry as verbs
from tunetrial.core import manifest
from tunetrial.core.errors import ConfigError, IntegrityError, StoreError, TunetrialError
from tunetrial.ship.artifacts import StoredFile
from tunetrial.ship.registry import Registry
from tunetrial.ship.shipped import Shipped, read_shipped
from tunetrial.store import TestLedger


@pytest.fixture
def tmp_path(tmp_path) -> Path:
    """In memory where there is such a place: hundreds of syncs cost nothing there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))


@pytest.fixture
def registry(tmp_path) -> Registry:
    """Three versions of `mail`: 1 is the champion, 2 was before it, 3 is the challenger."""
    made = Registry.at(tmp_path / "home" / "registry")
    for number in (1, 2, 3):
        made.add("mail", shipped(tmp_path / f"shipped-{number}", b"weights %d" % number))
    for which, alias in (("2", "champion"), ("1", "champion"), ("3", "challenger")):
        made.promote("mail", which, alias)
    return made


def tunetrial(*words: object, status: int = 0) -> str:
    """Run a verb; stdout if it ends well, else its one line on stderr."""
    ran = CliRunner().invoke(cli.app, ["registry", *map(str, words)])
    assert ran.exit_code == status, (ran.stdout, ran.stderr, ran.exception)
    if status == 0:
        return ran.stdout
    assert ran.stdout == "" and ran.stderr.startswith("tunetrial: ") and ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr


def refused(folder: Path, registry: Registry | None = None) -> str:
    """Why a folder is not added; nothing of it is kept."""
    registry = registry or Registry.at()
    before = registry.listing()
    with pytest.raises(TunetrialError) as caught:
        registry.add("mail", folder)
    assert "\n" not in str(caught.value) and registry.listing() == before
    assert registry.sweep().files == 0
    return str(caught.value)


def test_versions_count_up_and_aliases_point_to_them(registry):
    entry = registry.entry("mail")
    assert [one.version for one in entry.versions] == [1, 2, 3]
    assert entry.aliases == {"champion": 1, "challenger": 3}
    assert [(one.event, one.version, one.alias) for one in entry.history] == [
        *(("add", number, None) for number in (1, 2, 3)),
        ("promote", 2, "champion"),
        ("promote", 1, "champion"),
        ("promote", 3, "challenger"),
    ]
    assert registry.find("mail", "champion") == registry.find("mail", "1") == entry.versions[0]


def test_a_version_is_a_folder_again_that_programs_can_open(registry, tmp_path):
    folder = registry.find("mail", "2").folder
    plain = sorted((one.name, one.read_bytes()) for one in (tmp_path / "shipped-2").iterdir())
    assert sorted((one.name, one.read_bytes()) for one in folder.iterdir()) == plain
    assert read_shipped(tmp_path / "shipped-2") == registry.find("mail", "2").shipped
    moved = tmp_path / "elsewhere"
    shutil.move(registry.folder, moved)  # links lead within the folder, wherever it lies
    assert sorted(one.read_bytes() for one in Registry.at(moved).find("mail", "2").folder.iterdir())


def test_a_file_is_kept_once_however_many_versions_have_it(tmp_path):
    registry, base = Registry.at(tmp_path / "r"), bytes(200_000)
    for number in range(5):
        files = {"tokenizer.json": base, "nested/vocabulary.txt": b"words"}
        registry.add(f"name-{number % 2}", shipped(tmp_path / f"s{number}", b"w%d" % number, files))
    found = registry.listing()
    kept = {path.read_bytes() for path in (registry.folder / "objects").rglob("*") if path.is_file()}
    assert (
        sum(map(len, kept))
        == found.stored_bytes
        == sum(path.stat().st_size for path in (registry.folder / "objects").rglob("*") if path.is_file())
    )
    apart = sum(path.stat().st_size for n in range(5) for path in (tmp_path / f"s{n}").rglob("*") if path.is_file())
    assert found.apart_bytes == apart and found.stored_bytes < 0.25 * apart
    assert (registry.find("name-0", "3").folder / "nested" / "vocabulary.txt").read_bytes() == b"words"


def test_adapters_are_held_against_as_many_full_models(tmp_path):
    registry = Registry.at()
    for number, base in enumerate(("ab", "ab", "cd")):
        folder = shipped(tmp_path / f"s{number}", b"%d" % number * 1000, base_fingerprint=base, base_bytes=50_000)
        registry.add("mail", folder)
    registry.add("other", shipped(tmp_path / "whole", b"w" * 50_000, format="merged"))
    found = registry.listing()
    assert (found.adapters, found.bases_bytes, found.full_bytes) == (3, 100_000, 150_000)
    own = sum(v.bytes for one in found.entries for v in one.versions if one.name == "mail")
    last = tunetrial("list").splitlines()[-1]
    assert last == f"adapters: 3, {own:,} B and 100.0 kB for their bases; 150.0 kB as full models"


def test_the_same_files_again_are_the_same_version(registry, tmp_path):
    before = registry.entry("mail")
    version, is_new = registry.add("mail", tmp_path / "shipped-2")
    assert (version.version, is_new) == (2, False) and registry.entry("mail") == before
    other, is_new = registry.add("post", tmp_path / "shipped-2")
    assert (other.version, is_new) == (1, True) and other.folder == version.folder


def test_rollback_goes_back_one_promotion_at_a_time(registry):
    assert registry.rollback("mail").version == 2
    with pytest.raises(StoreError, match="nothing to roll back to, got champion at version 2 since its first"):
        registry.rollback("mail")
    with pytest.raises(StoreError, match="got no nightly"):
        registry.rollback("mail", "nightly")
    registry.promote("mail", "3")
    assert registry.rollback("mail").version == 2  # and not 1, which was rolled back from
    assert registry.entry("mail").aliases["challenger"] == 3


@settings(max_examples=25)
@given(st.lists(st.one_of(st.sampled_from("123"), st.just("back")), max_size=8))
def test_aliases_are_those_of_a_plain_stack(tmp_path_factory, steps):
    place = tmp_path_factory.getbasetemp() / "stacks"
    if not (place / "made").exists():
        made = Registry.at(place / "made")
        for number in (1, 2, 3):
            made.add("mail", shipped(place / f"s{number}", b"w%d" % number))
    with_copy = place / hashlib.sha256(repr(steps).encode()).hexdigest()
    shutil.copytree(place / "made", with_copy, symlinks=True, dirs_exist_ok=True)
    registry, stack = Registry.at(with_copy), []
    for step in steps:
        if step == "back" and len(stack) > 1:
            stack.pop()
            assert registry.rollback("mail").version == stack[-1]
        elif step == "back":
            with pytest.raises(StoreError):
                registry.rollback("mail")
        else:
            assert registry.promote("mail", step).moved == (not stack or stack[-1] != int(step))
            stack += [int(step)] if not stack or stack[-1] != int(step) else []
    assert registry.entry("mail").aliases == ({"champion": stack[-1]} if stack else {})
    shutil.rmtree(with_copy)


def test_promote_and_rollback_take_less_than_a_tenth_of_a_second(tmp_path):
    """Whatever the size, unless a file has changed; the median of five, as a machine may be busy."""
    registry = Registry.at(tmp_path / "r")
    for number in (1, 2):
        registry.add("mail", shipped(tmp_path / f"s{number}", bytes([number]) * 50_000_000))
    taken_s = {"promote": [], "rollback": []}
    registry.promote("mail", "1")
    for _ in range(5):
        for verb, act in (
            ("promote", lambda: registry.promote("mail", "2")),
            ("rollback", lambda: registry.rollback("mail")),
        ):
            began = time.perf_counter()
            act()
            taken_s[verb].append(time.perf_counter() - began)
    assert all(sorted(values)[2] < 0.1 for values in taken_s.values()), taken_s


def test_a_version_whose_chain_failed_is_never_promoted(registry, tmp_path):
    chain = {"passed": False, "first_break": "gguf Q4_K_M"}
    registry.add("mail", shipped(tmp_path / "broken", b"broken", chain=chain))
    with pytest.raises(StoreError, match="mail@4: its fidelity chain failed, got FAIL at gguf Q4_K_M; promote a"):
        registry.promote("mail", "4")
    registry.add("mail", shipped(tmp_path / "untried", b"untried", chain={"passed": None, "first_break": None}))
    assert registry.promote("mail", "5").moved
    ran = CliRunner().invoke(cli.app, ["registry", "promote", "mail@5"])
    assert ran.exit_code == 0 and ran.stderr == "note: the fidelity chain of mail@5 was not tried\n"
    registry.add("mail", shipped(tmp_path / "other", b"other", base_fingerprint="ef" * 32))
    assert registry.promote("mail", "6").notes == (
        "mail@6 has another base model than version 5: serve it with its own",
    )
    assert registry.rollback("mail").notes[1:] == (
        "mail@5 has another base model than version 6: serve it with its own",
    )


DAMAGES = {
    "altered": (lambda path: path.write_bytes(b"weighty 2"), "adapter_model.safetensors: is altered, expected SHA-256"),
    "truncated": (lambda path: path.write_bytes(b"w"), "is truncated or altered, expected 9 bytes, got 1"),
    "missing": (lambda path: path.unlink(), "adapter_model.safetensors: is missing, got no file"),
    "a link": (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "is missing, got no file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_and_neither_promoted_nor_rolled_back_to(registry, tmp_path, damage):
    act, said = DAMAGES[damage]
    registry.promote("mail", "2")
    registry.promote("mail", "3")
    kept = (registry.find("mail", "2").folder / "adapter_model.safetensors").resolve()
    kept.chmod(0o644)
    times = kept.stat()
    act(kept)
    if kept.exists() and not kept.is_symlink():
        os.utime(kept, ns=(times.st_atime_ns, times.st_mtime_ns))  # times set back do not hide it
    assert said in tunetrial("promote", "mail@2", status=1) and said in tunetrial("rollback", "mail", status=1)
    assert registry.entry("mail").aliases["champion"] == 3
    shown = CliRunner().invoke(cli.app, ["registry", "show", "mail@2", "--verify"])
    assert shown.exit_code == 1 and said in shown.stderr
    assert CliRunner().invoke(cli.app, ["registry", "show", "mail@3", "--verify"]).exit_code == 0
    assert not registry.add("mail", tmp_path / "shipped-2")[1]  # the remedy that the message names
    assert registry.damages(registry.find("mail", "2")) == () and registry.rollback("mail").version == 2


def test_a_tree_with_foreign_or_missing_links_is_named_and_mended(registry, tmp_path):
    folder = registry.find("mail", "2").folder
    (folder / "adapter_config.json").unlink()
    (folder / "extra.txt").write_text("x")
    found = registry.damages(registry.find("mail", "2"))
    assert found[0] == "extra.txt: is not of this version" and "adapter_config.json: is missing from" in found[1]
    registry.add("mail", tmp_path / "shipped-2")
    assert registry.damages(registry.find("mail", "2")) == ()


def test_gc_removes_what_no_version_names_and_nothing_else(registry):
    (registry.folder / "incoming" / "left").mkdir()
    (registry.folder / "incoming" / "left" / "half").write_bytes(bytes(1000))
    (registry.folder / "objects" / "ab").mkdir(exist_ok=True)
    (registry.folder / "objects" / "ab" / ("ab" * 32)).write_bytes(bytes(500))
    (registry.folder / "trees" / ("cd" * 32)).mkdir()
    assert tunetrial("gc") == "2 files of no version removed, 1,500 B\n"
    assert tunetrial("gc", "--json") == '{\n "files": 0,\n "bytes": 0\n}\n'
    assert not list((registry.folder / "incoming").iterdir()) and len(list((registry.folder / "trees").iterdir())) == 3
    assert all(registry.damages(one) == () for one in registry.entry("mail").versions)


def test_history_can_be_added_to_and_not_rewritten(registry):
    with sqlite3.connect(registry.folder / "registry.sqlite") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        for change in ("DELETE FROM history", "UPDATE history SET version = 3", "DELETE FROM versions"):
            with pytest.raises(sqlite3.IntegrityError, match="rows are added and never changed"):
                database.execute(change)
    database.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "DROP TRIGGER files_update; UPDATE files SET path = '../../x' WHERE path LIKE 'tune%'",
            "rows of mail@1 were altered",
        ),
        ("DROP TRIGGER files_update; UPDATE files SET bytes = bytes + 1", "rows of mail@1 were altered"),
        ("DROP TRIGGER versions_update; UPDATE versions SET shipped = '{}'", "rows of mail@1 were altered"),
        ("DROP TRIGGER history_update; UPDATE history SET event = 'rollback'", "the history of mail was altered"),
        ("PRAGMA user_version = 9", "registry of format 1, got 9; update tunetrial"),
        ("DROP TABLE history", "not a registry's database, got no such table: history"),
    ],
)
def test_an_altered_database_is_refused_in_one_line(registry, change, said):
    database = sqlite3.connect(registry.folder / "registry.sqlite")
    database.executescript(change)
    database.close()
    assert said in tunetrial("list", status=1)


def test_a_file_that_is_no_database_is_refused_in_one_line(registry):
    for left in registry.folder.glob("registry.sqlite*"):
        left.unlink()
    (registry.folder / "registry.sqlite").write_bytes(b"x" * 5000)
    assert "not a registry's database, got file is not a database; restore it" in tunetrial("list", status=1)


def test_a_folder_that_is_not_as_it_was_shipped_is_refused(tmp_path):
    folder = shipped(tmp_path / "s", files={"nested/a.json": b"{}"})
    manifest.seal(folder)
    for act, said in (
        (lambda: (folder / "adapter_model.safetensors").write_bytes(b"weighty"), "adapter_model.safetensors: not as"),
        (lambda: (folder / "nested" / "a.json").unlink(), "nested/a.json: not as it was shipped, got no file"),
        (lambda: (folder / "extra.txt").write_text("x"), "extra.txt: not as it was shipped, got a file that it does"),
        (lambda: (folder / "manifest.json").write_text("[]"), "manifest.json: not a manifest of these files"),
    ):
        kept = tmp_path / "kept"
        shutil.copytree(folder, kept)
        act()
        assert said in refused(folder)
        shutil.rmtree(folder)
        kept.rename(folder)
    assert Registry.at().add("mail", folder)[1]


def test_folders_that_say_not_what_they_are_are_refused(tmp_path):
    assert "no such folder; name one that `tunetrial ship` wrote" in refused(tmp_path / "none")
    folder = shipped(tmp_path / "s")
    (folder / "tunetrial.json").unlink()
    assert "got no file tunetrial.json; write the folder with `tunetrial ship STUDY" in refused(folder)
    for content, said in (
        (b"{", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b" " * 70_000, "got 70000 bytes"),
        (b"3", "the whole"),
        (json.dumps(statement(arm="a\x1b[2Jb")).encode(), "arm: String should match pattern"),
        (json.dumps(statement(format="zip")).encode(), "format: Input should be"),
        (json.dumps(statement(more=1)).encode(), "more: Extra inputs are not permitted"),
        (json.dumps(statement(chain={"passed": "so-so"})).encode(), "chain.passed: Input should be a valid boolean"),
    ):
        (folder / "tunetrial.json").write_bytes(content)
        assert said in refused(folder)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "x.PKL", "nested/w.pth", "w.ckpt", "a.npz"])
def test_pickled_weights_are_refused_with_the_safe_way(tmp_path, name):
    said = refused(shipped(tmp_path / "s", files={name: b"anything"}))
    assert f"{name}: pickled" in said and "weights_only=True" in said and "safetensors.torch.save_file" in said


def test_a_pickle_is_known_by_its_first_bytes_whatever_its_name(tmp_path):
    import pickle

    for protocol in (2, 3, 4, 5):
        assert "pickled" in refused(shipped(tmp_path / f"p{protocol}", files={"x.json": pickle.dumps({}, protocol)}))
    assert "or a zip" in refused(shipped(tmp_path / "zip", files={"x.txt": b"PK\x03\x04rest"}))
    from safetensors.numpy import save

    begun_alike = 0
    for padding in range(700):  # safetensors whose header has a length that begins as a pickle does
        weights = save({"w": np.zeros(1, np.float32)}, metadata={"padding": "x" * padding})
        if weights[:1] == b"\x80":
            begun_alike += Registry.at().add("mail", shipped(tmp_path / f"s{padding}", weights))[1]
    assert begun_alike > 5


def test_a_real_pickled_adapter_is_refused_and_kept_once_converted_as_it_is_said(tmp_path, outside_data):
    import torch
    from safetensors.torch import save_file

    pickled = outside_data / "models" / "roberta_base_lora_mnli_adapter" / "roberta_base_lora_mnli.bin"
    folder = shipped(tmp_path / "s", files={"adapter_model.bin": pickled.read_bytes()})
    assert "adapter_model.bin: pickled" in refused(folder)
    loaded = torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")
    save_file(loaded, folder / "adapter_model.safetensors")
    (folder / "adapter_model.bin").unlink()
    assert Registry.at().add("mail", folder)[1]


def test_links_pipes_and_odd_names_are_refused(tmp_path):
    folder = shipped(tmp_path / "s")
    (folder / "link.json").symlink_to("/etc/hostname")
    assert "link.json: is a link, which could lead elsewhere" in refused(folder)
    (folder / "link.json").unlink()
    (folder / "below").symlink_to(tmp_path)
    assert "below: is a link" in refused(folder)
    (folder / "below").unlink()
    os.mkfifo(folder / "pipe")
    assert "pipe: not a plain file" in refused(folder)
    (folder / "pipe").unlink()
    (folder / "tunetrial.json").rename(tmp_path / "elsewhere.json")
    (folder / "tunetrial.json").symlink_to(tmp_path / "elsewhere.json")
    assert "got no file tunetrial.json" in refused(folder)


@given(st.text(min_size=1, max_size=40).filter(lambda name: "\0" not in name and "/" not in name))
def test_no_file_name_leads_out_of_the_registry(tmp_path_factory, name):
    place = tmp_path_factory.getbasetemp() / "names" / hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
    folder, registry = shipped(place / "s"), Registry.at(place / "r")
    try:
        (folder / name).write_bytes(b"x")
    except (OSError, UnicodeEncodeError):
        return
    try:
        version, _ = registry.add("mail", folder)
    except TunetrialError as error:
        assert "\n" not in str(error) and str(error).isascii() and str(error).isprintable()
        return
    for path in version.folder.rglob("*"):
        assert path.resolve().is_relative_to(registry.folder / "objects")
    assert (version.folder / name).read_bytes() == (folder / name).read_bytes()
    shutil.rmtree(place)


@given(
    st.text(alphabet="ab./\\-_~ \n\0é:", max_size=20) | st.sampled_from(["../x", "/etc/x", "a/../../x", "a//b", "."])
)
def test_no_path_of_a_row_leads_out_of_its_tree(path):
    try:
        StoredFile(path=path, sha256="ab" * 32, bytes=1)
    except ValueError:
        return
    assert os.path.normpath(os.path.join("/tree", path)) == f"/tree/{path}" and not path.startswith("/")


@given(st.text(max_size=70))
def test_names_and_aliases_are_taken_or_refused_in_one_line(text):
    registry, allowed = Registry.at(Path("/nowhere/at/all")), set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    fine = 0 < len(text) <= 64 and set(text) <= allowed and text[0] not in "._-"
    for act, is_fine in (
        (lambda: registry.entry(text), fine),
        (lambda: registry.promote("mail", "1", text), fine and not text.isdigit()),
    ):
        with pytest.raises(ConfigError) as caught:
            act()
        said = str(caught.value)
        assert ("no such name" in said) == is_fine and "\n" not in said and said.isprintable()


@given(st.dictionaries(st.sampled_from([*statement(), "x"]), st.text(max_size=9) | st.none() | st.integers()))
def test_a_statement_is_read_or_refused_and_never_half_read(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("statement")
    (folder / "tunetrial.json").write_text(json.dumps(statement(**changes)))
    try:
        assert read_shipped(folder).model_dump() == statement(**changes)
    except IntegrityError as error:
        assert "\n" not in str(error) and "ship the folder again" in str(error)


def test_words_that_make_no_sense_are_refused_in_one_line(registry, tmp_path):
    empty = tmp_path / "empty"
    for words, said in {
        ("show", "post"): "no such name, got 'post'; see `tunetrial registry list`",
        ("show", "mail@9"): "mail: no such version or alias, got '9'; there are 1 to 3, challenger, champion",
        ("show", "mail@nightly"): "got 'nightly'",
        ("show", "mail@"): "got ''",
        ("show", "../mail"): "name: not allowed, got '../mail'",
        ("promote", "mail@0"): "got '0'",
        ("promote", "mail@1", "--alias", "7"): "alias: would be taken for a version, got '7'",
        ("promote", "mail@1", "--alias", "A b"): "alias: not allowed, got 'A b'",
        ("add", "Mail", tmp_path / "shipped-1"): "name: not allowed, got 'Mail'",
        ("rollback", "post"): "no such name",
        ("list", "--registry", tmp_path / "shipped-1" / "tunetrial.json"): "not a folder, got a file; name the folder",
        ("show", "mail", "--registry", empty): f"{empty}: no such name, got 'mail'; add a version of it first",
        ("add", "mail", tmp_path / "shipped-1", "--registry", "/proc/none"): "/proc/none: cannot be written, got",
    }.items():
        assert said in tunetrial(*words, status=1)
    assert "no versions yet in" in tunetrial("list", "--registry", empty) and not empty.exists()
    assert "give NAME@VERSION, such as mail@2" in tunetrial("promote", "mail", status=2)


def test_every_verb_has_json_and_few_options():
    for command in verbs.app.registered_commands:
        names = command.callback.__annotations__
        assert "json" in names and len(names) - 1 <= {"compare": 9}.get(command.callback.__name__, 6)


def test_json_of_every_verb_is_json_and_tables_fit_80_columns(registry, tmp_path):
    long = shipped(tmp_path / "long", b"long", arm="a" * 200, verdict="v" * 200)
    name = "n" * 64
    assert json.loads(tunetrial("add", name, long, "--json"))["is_new"]
    assert json.loads(tunetrial("list", "--json"))["stored_bytes"] > 0
    assert json.loads(tunetrial("show", "mail", "--json"))["aliases"] == {"challenger": 3, "champion": 1}
    shown = json.loads(tunetrial("show", f"{name}@1", "--json", "--verify"))
    assert shown["shipped"]["arm"] == "a" * 200 and shown["damages"] == {f"{name}@1": []}
    assert json.loads(tunetrial("promote", f"{name}@1", "--json"))["before"] is None
    assert json.loads(tunetrial("rollback", "mail", "--json"))["version"] == 2
    for words in (("list",), ("show", name), ("show", "mail")):
        assert all(len(line) <= 80 for line in tunetrial(*words).splitlines())
    assert [line for line in tunetrial("show", "mail@2").splitlines() if "champion" in line] == ["mail@2 (champion)"]


def test_a_verb_of_the_registry_loads_no_engine(registry):
    code = "import sys\nfrom tunetrial.cli import app\napp(['registry', 'rollback', 'mail'], standalone_mode=False)\n"
    loaded = subprocess.run([sys.executable, "-c", f"{code}print(*sys.modules)"], capture_output=True, text=True).stdout
    assert "champion is version 2" in loaded
    assert not {"torch", "transformers", "peft", "pandas", "pyarrow", "scipy"} & set(loaded.split())


def test_help_of_every_verb_fits_60_columns():
    """In a process of its own, since the width is read once."""
    names = [one.name or one.callback.__name__ for one in verbs.app.registered_commands]
    code = "from tunetrial.cli import app\n" + "".join(
        f"app({['registry', *words, '--help']!r}, standalone_mode=False)\n" for words in ([], *([one] for one in names))
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"COLUMNS": "60"}, capture_output=True, text=True
    )
    assert ran.returncode == 0 and ran.stdout.count("--json") == len(names) == 9, ran.stderr
    assert all(len(line) <= 60 for line in ran.stdout.splitlines()), ran.stdout


def tables(tmp_path, registry, *, gain: float, rows: int = 400, **changes) -> str:
    rng = np.random.default_rng(3)
    reference_E = (rng.random(rows) < 0.7).astype(float)
    changed_E = (rng.random(rows) < 0.5) if gain == 0 else (1.0 if gain > 0 else 0.0)  # 0: as often better as worse
    candidate_E = np.where(rng.random(rows) < (abs(gain) or 0.1), changed_E, reference_E)
    for name, score_E, more in (("a", reference_E, {}), ("b", candidate_E, changes)):
        (tmp_path / f"{name}.parquet").write_bytes(score_table(score_E, **more))
    return f"{tmp_path / 'a.parquet'},{tmp_path / 'b.parquet'}"


@pytest.mark.parametrize(
    ("gain", "margin", "words"),
    [
        (0.6, 0.02, "BETTER"),
        (-0.3, 0.02, "WORSE"),
        (0.02, 0.1, "SAME (within your margin)"),
        (0, 0.001, "CAN'T TELL YET"),
    ],
)
def test_versions_are_compared_on_the_same_items_in_the_words_of_studies(registry, tmp_path, gain, margin, words):
    given = tables(tmp_path, registry, gain=gain)
    asked = ("compare", "mail", "--scores", given, "--margin", margin, "--json")
    found = json.loads(tunetrial(*asked))
    one = found["comparison"]
    assert (one["words"], found["reference"], found["candidate"]) == (words, 1, 3)
    import scipy.stats
    from pyarrow import parquet

    a, b = (np.array(parquet.read_table(path)["score"]) for path in given.split(","))
    low, high = scipy.stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (one["effect"], one["low"], one["high"]) == pytest.approx((np.mean(b - a), low, high))
    assert found["times_opened"] == 1 and json.loads(tunetrial(*asked))["times_opened"] == 1  # a look repeated
    other = json.loads(tunetrial(*asked, "--versions", "2,3"))
    assert other["times_opened"] == 2 == TestLedger(Path(os.environ["TUNETRIAL_HOME"])).count(found["items"])
    assert words in tunetrial(*asked[:-1]) and all(len(line) <= 80 for line in tunetrial(*asked[:-1]).splitlines())


def test_versions_that_carry_their_scores_need_no_files(tmp_path):
    rng, registry = np.random.default_rng(5), Registry.at()
    for number in (1, 2):
        scores = score_table((rng.random(50) < 0.4 * number).astype(float))
        registry.add("mail", shipped(tmp_path / f"s{number}", b"%d" % number, {"scores.parquet": scores}))
        registry.promote("mail", str(number), ("champion", "challenger")[number - 1])
    found = json.loads(tunetrial("compare", "mail", "--margin", 0.01, "--json"))
    assert found["comparison"]["words"] == "BETTER" and found["comparison"]["n_examples"] == 50


def test_rows_of_one_cluster_count_as_one(registry, tmp_path):
    given = tables(tmp_path, registry, gain=0.3, rows=40)
    clusters = [f"sender-{number // 10}" for number in range(40)]
    for path in given.split(","):
        from pyarrow import parquet

        score_E = np.array(parquet.read_table(path)["score"])
        Path(path).write_bytes(score_table(score_E, clusters=clusters))
    one = json.loads(tunetrial("compare", "mail", "--scores", given, "--margin", 0.05, "--json"))["comparison"]
    assert (one["n_clusters"], one["n_examples"]) == (4, 40) and one["procedure"].startswith(
        "paired t over 40 items in 4"
    )


def test_what_cannot_be_compared_is_refused(registry, tmp_path):
    def said(*more: object, status: int = 1) -> str:
        return tunetrial("compare", "mail", "--margin", 0.1, *more, status=status)

    assert "mail@1: has no scores of its own" in said()
    given = tables(tmp_path, registry, gain=0.3, ids=[f"other-{n}" for n in range(400)])
    assert "items: must be the same for both versions, got 800 of only one" in said("--scores", given)
    assert "targets must be the same" in said("--scores", tables(tmp_path, registry, gain=0.3, targets=["ham"] * 400))
    assert "no test rows, got validation" in said("--scores", tables(tmp_path, registry, gain=0.3, split="validation"))
    ids = ["twice"] * 400
    assert "one score for each item, got 400 rows of 1 items" in said(
        "--scores", tables(tmp_path, registry, gain=0.3, ids=ids)
    )
    same = f"{tmp_path / 'a.parquet'},{tmp_path / 'a.parquet'}"
    assert "no spread of differences to judge by, got 0 for all 400" in said("--scores", same)
    (tmp_path / "no.parquet").write_bytes(b"no")
    assert "not a table of scores" in said("--scores", f"{tmp_path / 'no.parquet'},{tmp_path / 'a.parquet'}")
    assert "needs two versions to compare, got mail@1 twice" in said("--versions", "1,champion")
    for wrong in (("--scores", "a"), ("--versions", "1"), ("--versions", "1,2,3")):
        assert "take two values each: A,B" in said(*wrong, status=2)
    for wrong in ("0", "x,y", "1,0", "0,inf", "nan,1", "0,1,2"):
        assert f"--bounds: two numbers, low before high, got {wrong!r}" in said("--bounds", wrong, status=2)
    for margin in ("0", "-1", "nan", "inf"):
        assert "give --margin" in tunetrial("compare", "mail", "--margin", margin, status=2)
    assert "two questions" in said("--scores", same, "--outcomes", "x", status=2)
    assert not (tmp_path / "home" / "test_ledger.jsonl").exists()  # no look was taken


def test_logged_outcomes_say_when_to_stop(registry, tmp_path):
    rng, log = np.random.default_rng(6), tmp_path / "log.jsonl"
    lines = [
        {"version": v, "outcome": int(rng.random() < (0.8 if v == 3 else 0.5)), "at": "now"}
        for v in rng.choice([1, 2, 3], 3000)
    ]
    lines = [{**one, "version": int(one["version"])} for one in lines]
    text = "".join(json.dumps(one) + "\n" for one in lines)
    log.write_text(text + '{"version": 3, "outc')  # a line still being written
    asked = ("compare", "mail", "--outcomes", log, "--margin", 0.02)
    found = json.loads(tunetrial(*asked, "--json"))
    count = sum(one["version"] == 2 for one in lines)
    assert found["words"] == "BETTER" and found["stop"] and found["other_outcomes"] == count
    assert found["candidate"]["mean"] == pytest.approx(
        np.mean([one["outcome"] for one in lines if one["version"] == 3])
    )
    both = [one for one in lines if one["version"] != 2][: found["settled_at"] - 1]
    log.write_text("".join(json.dumps(one) + "\n" for one in both))
    assert "GO ON: the interval holds 0" in tunetrial(*asked)
    log.write_text(text)
    assert "STOP: the interval lies above 0; it could be stopped after outcome" in tunetrial(*asked)
    assert "WORSE" in tunetrial(*asked, "--versions", "challenger,champion")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("3", ":2: not an outcome, got 3; write {"),
        ('{"version": 1}', "not an outcome"),
        ('{"version": "1", "outcome": 1}', "version: must be a whole number, got '1'"),
        ('{"version": true, "outcome": 1}', "version: must be a whole number"),
        ('{"version": 1, "outcome": "yes"}', "outcome: must be a number, got 'yes'"),
        ('{"version": 1, "outcome": NaN}', "outcome: must be a number, got nan"),
        ('{"version": 1, "outcome": 5}', "outcome: must lie between 0 and 1, got 5; state bounds that hold for all"),
        ("{nonsense", "not JSON, got '{nonsense'; mend the line"),
        ("[" * 9000, "not JSON"),
    ],
)
def test_a_line_that_is_no_outcome_is_named(registry, tmp_path, line, said):
    log = tmp_path / "log.jsonl"
    log.write_text('{"version": 1, "outcome": 1}\n' + line + '\n{"version": 3, "outcome": 1}\n')
    found = tunetrial("compare", "mail", "--outcomes", log, "--margin", 0.1, status=1)
    assert said in found and f"{log}:2: " in found and len(found) < 300


def test_a_log_without_one_of_the_versions_is_refused(registry, tmp_path):
    log = tmp_path / "log.jsonl"
    for text, said in (
        ("", "version 1 has no outcomes yet, got 0"),
        ('{"version": 1, "outcome": 1}\n', "version 3 has"),
    ):
        log.write_text(text)
        assert said in tunetrial("compare", "mail", "--outcomes", log, "--margin", 0.1, status=1)
    assert "cannot be read, got No such file" in tunetrial(
        "compare", "mail", "--outcomes", tmp_path / "no", "--margin", 1, status=1
    )


def by_the_file_alone(rule: dict, key: str) -> int:
    """The rule as another program follows it, which has sha256sum and the file's words."""
    words = f"{rule['salt']}:{key}".encode()
    hexadecimal = subprocess.run(["sha256sum"], input=words, capture_output=True, check=True).stdout[:8]
    number = int(hexadecimal, 16)
    (version,) = [part["version"] for part in rule["parts"] if part["first"] <= number < part["below"]]
    return version


def test_the_split_is_followed_from_its_file_alone_and_is_as_stated(registry, tmp_path):
    from tunetrial.ship.traffic import bucket

    rules = {}
    for share, seed in ((0.1, 1), (0.3, 1), (0.1, 2)):
        to = tmp_path / f"{share}-{seed}.json"
        assert tunetrial("split", "mail", "--challenger-share", share, "--seed", seed, "--to", to) == f"{to}\n"
        rules[share, seed] = json.loads(to.read_text())
        tunetrial("split", "mail", "--challenger-share", share, "--seed", seed, "--to", to)  # the same bytes again
    rule = rules[0.1, 1]
    assert {part["alias"]: part["version"] for part in rule["parts"]} == {"champion": 1, "challenger": 3}
    for worked in rule["examples"]:
        assert by_the_file_alone(rule, worked["key"]) == worked["version"]
    dealt = {
        asked: {key for key in map(str, range(20_000)) if bucket(one["salt"], key) < one["parts"][0]["below"]}
        for asked, one in rules.items()
    }
    assert len(dealt[0.1, 1]) == pytest.approx(2000, abs=140)  # 3.3 standard deviations
    assert dealt[0.1, 1] < dealt[0.3, 1]  # who had the challenger keeps it
    assert len(dealt[0.1, 1] & dealt[0.1, 2]) == pytest.approx(200, abs=50)  # another seed deals anew


def test_a_split_that_makes_no_sense_is_refused(registry, tmp_path):
    to = tmp_path / "split.json"
    for share in ("0", "1", "-0.1", "nan", "1e-12"):
        said = tunetrial("split", "mail", "--challenger-share", share, "--to", to, status=1)
        assert "challenger share: must lie between 0 and 1" in said
    registry.promote("mail", "1", "challenger")
    assert "champion and challenger must differ, got version 1" in tunetrial("split", "mail", "--to", to, status=1)
    registry.add("post", tmp_path / "shipped-1")
    assert "post: no such version or alias, got 'champion'; there are 1" in tunetrial(
        "split", "post", "--to", to, status=1
    )
    assert not to.exists()
    registry.promote("mail", "3", "challenger")
    to.write_text("mine")
    assert (
        "there is another file of this name" in tunetrial("split", "mail", "--to", to, status=1)
        and to.read_text() == "mine"
    )


def test_a_statement_says_what_ship_writes(tmp_path):
    assert set(Shipped.model_fields) == {
        "format",
        "base_fingerprint",
        "study",
        "arm",
        "trial",
        "verdict",
        "test_rows",
        "base_bytes",
        "chain",
    }
    assert Shipped.model_validate(statement()).model_dump() == statement()
    Shipped.model_validate(statement()).write(tmp_path)
    assert read_shipped(tmp_path).model_dump() == statement()
