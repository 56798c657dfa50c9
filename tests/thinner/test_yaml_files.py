"""Whatever stands in a YAML file: values as DVC reads them, or one line, in no time."""

import io
import time
import unicodedata
from pathlib import Path

import pytest
import yaml
from anything import CONTROL, changed, fuzz
from dvc.utils.serialize import parse_yaml
from hypothesis import given
from hypothesis import strategies as st

from thinner.config import ParamsError, load_params
from thinner.errors import UserError
from thinner.files import yaml_files

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
FUZZ = fuzz(7)


@pytest.mark.parametrize(
    "text",
    ["a: 010", "a: 1:30", "a: yes", "a: 1e-3", "a: 0o10", "a: 1_000", "a: 2026-01-01", "a: .5", "a: ~", "a: &x [1]\nb: *x",
     "<<: {a: 1}\nb: 2", "%YAML 1.1\n---\na: off"],
)  # fmt: skip
def test_values_are_those_that_dvc_reads(text):
    assert yaml_files.parse(text) == parse_yaml(text, "params.yaml")


def test_numbers_and_words_are_what_they_look_like():
    assert yaml_files.parse("a: 010\nb: 1:30\nc: no\nd: 1e-3") == {"a": 10, "b": "1:30", "c": "no", "d": 0.001}


def laughs(width, depth):
    lines = ["a0: &a0 [" + ",".join(["x"] * width) + "]"]
    lines += [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * width) + "]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "^line 3: the key a stands there twice. Take one of them out$"),
        ("a: [", "^line 2: not YAML: "),
        ("a: 1\n---\nb: 2", "^line 2: not YAML: but found another document$"),
        ("a: !!python/object/apply:os.system [ls]", "^line 1: the tag 'tag:yaml.org,2002:python.* is not known here"),
        ("a: !!set {b, c}", "^line 1: the tag .* is not known here. Take it out$"),
        ('a: "\\e[31mred"', r"^line 1: the character '\\x1b' is in it. Take it out$"),
        ('a: "b\\Lc"', r"^line 1: the character '\\u2028' is in it. Take it out$"),
        ('a: "\\ud800"', "^line 1: not YAML: found invalid Unicode character escape code$"),
        ("[" * 200_000, "^line 1: nested more than 30 deep"),
        ("{a: " * 200_000, "^line 1: nested more than 30 deep"),
        ("- " * 200_000, "^line 1: nested more than 30 deep"),
        ("a: &a [*a]", r"^line 1: \*a stands for itself"),
        (laughs(9, 10), "^line 6: too many values"),
        (laughs(2, 60), "too many values, or too many aliases"),
        ("a: " + "9" * 5000, "^not YAML that can be read: Exceeds the limit"),
        ("a: 2026-13-45", "^not YAML that can be read: month must be in 1..12$"),
        ("? {a: 1}\n: 2", "^line 1: not YAML: found unhashable key$"),
        ("a: \x00", "^not YAML: unacceptable character"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_at_once(text, line):
    began = time.process_time()
    with pytest.raises(yaml_files.YamlFileError, match=line) as caught:
        yaml_files.parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert time.process_time() - began < 5


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "params.yaml"
    for content, line in ((b"a: \xff\xfe", r"not UTF-8 \(byte 3\)"), (b"a" * 1_000_001, "larger than 1,000,000 bytes")):
        path.write_bytes(content)
        with pytest.raises(ParamsError, match=rf"params.yaml: 1 mistake\n  {line}"):
            load_params(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ParamsError, match="no such file"):
        load_params(path)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("  seed: 0", "  seed: 0\n  1a: 2", "run.1a: unknown key .value 2.. "),
        ("  seed: 0", "  seed: 0\n  2: 2", "run.2: .*"),
        ("  seed: 0", "  seed: 0\n  int: 2", "run.int: unknown key .value 2.. "),
        ("  seed: 0", "  seed: 0\n  '': 2", "run.: unknown key"),
        ("  seed: 0", "  seed: 0\n  null: 2", "run.None: .*"),
        ("  seed: 0", "  seed: 1" + "0" * 400, "run.seed: 1000.* characters.: "),
        ("lr: 0.002", "lr: 1" + "0" * 400, r"finetune.training.lr: 10*\.\.\. \(401 characters\): should be a finite number"),
        ("lr: 0.002", "lr: .nan", "finetune.training.lr: nan: should be a finite number"),
        ("lr: 0.002", "lr: yes", "finetune.training.lr: 'yes': should be a valid number"),
        ("labelled: 2000", "labelled: .nan", "data.labelled: nan: .*should be a finite number"),
        ("mean: [0.5, 0.5, 0.5]", "mean: [0.5, .inf, 0.5]", "finetune.mean.1: inf: should be a finite number"),
        ("mean: [0.5, 0.5, 0.5]", "mean: [0.5, -.nan, 0.5]", "finetune.mean.1: '-.nan': should be a valid number"),
        ("compile: false", "compile: no", "run.compile: 'no': should be a valid boolean, true or false"),
        ("precision: fp32 ", "precision: 2026-01-01", r"run.precision: unknown datetime.date\(2026, 1, 1\)"),
        ("steps: 1000", "steps: 1" + "0" * 30, "student.training.steps: 10* ?: should be less than or equal to 1000000000000"),
        ("  seed: 0", "  seed: 0\n  seed: 1", "line 6: the key seed stands there twice. Take one of them out"),
    ],
)  # fmt: skip
def test_a_mistake_in_params_yaml_names_its_key(tmp_path, before, after, line):
    assert before in TEXT
    (tmp_path / "params.yaml").write_text(TEXT.replace(before, after, 1))
    with pytest.raises(ParamsError, match=rf"params.yaml: 1 mistake\n  {line}"):
        load_params(tmp_path / "params.yaml")


# ---------------------------------------------------------------------------------------------------- anything

TOKENS = st.sampled_from(
    ["a", "b:", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "!!int ", "! ", "|", ">", "'", '"', "#", "%",
     "? ", "~", "<<: ", "---", "...", "\t", "0x", "1:30", "010", "1e400", ".nan", "\\x1b", "\\ud800", "é", "\u2028", "\x85"]
)  # fmt: skip
SOUP = st.lists(TOKENS | st.text(max_size=3), max_size=40).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.sampled_from([10**40, -1, 0, 1, 2**31, 2**63, 0.5, 1e308, "auto", "finetune", "distill", "", "../..", "inf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@FUZZ
@given(SOUP)
def test_any_text_is_values_or_one_line(text):
    said, found = "", None
    try:
        found = yaml_files.parse(text)
    except UserError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        return
    assert repr(found or {}) == repr(parse_yaml(text, "params.yaml"))


PARAMS = yaml_files.parse(TEXT)


@FUZZ
@given(changed(PARAMS, VALUES))
def test_any_value_anywhere_in_params_yaml_is_right_or_named(tmp_path, params):
    text = io.StringIO()
    yaml.safe_dump(params, text, allow_unicode=True)
    path = tmp_path / "params.yaml"
    path.write_text(text.getvalue(), encoding="utf-8", errors="replace")
    check(path)


@FUZZ
@given(st.integers(0, len(TEXT) - 1), st.integers(0, 30), SOUP)
def test_params_yaml_with_any_piece_of_it_replaced_is_right_or_named(tmp_path, at, length, text):
    path = tmp_path / "params.yaml"
    path.write_text(TEXT[:at] + text + TEXT[at + length :], encoding="utf-8", errors="replace")
    check(path)


def check(path):
    lines = []
    try:
        load_params(path)
    except ParamsError as error:
        lines = error.lines
        assert lines
    assert all(len(line) < 2000 for line in lines)
    assert not CONTROL & {unicodedata.category(letter) for letter in "".join(lines)}
