"""An Ollama `Modelfile`. Its grammar is that of Ollama's parser (github.com/ollama/ollama, docs/modelfile.mdx)."""

from collections.abc import Mapping, Sequence

from tunetrial.core.errors import ConfigError


def modelfile(
    model: str, *, adapter: str | None, template: str, stops: Sequence[str], parameters: Mapping[str, int], said: str
) -> str:
    """Write a Modelfile.

    Decoding is greedy and without a penalty of repeats, as a study scores completions; Ollama's defaults are not.

    Args:
        model: File name of the GGUF beside it; so `adapter`.
        template: In Go's syntax, see `templates`.
        stops: Texts that end an answer.
        said: One line about what is to be sent.
    Raises:
        ConfigError: A text cannot be written so that Ollama reads it back.
    """
    lines = [f"# {_one_line(said)}", f"FROM ./{model}"]
    lines += [f"ADAPTER ./{adapter}"] if adapter else []
    lines += [f"TEMPLATE {quoted(template)}"]
    lines += [f"PARAMETER stop {quoted(stop)}" for stop in stops]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def quoted(value: str) -> str:
    """A value between triple quotes, in which nothing is escaped.

    Raises:
        ConfigError: It holds three quotes, or a character that the parser drops or takes for another.
    """
    odd = next((c for c in value if not (c.isprintable() or c in "\n\t")), None)
    if '"""' in value or odd is not None:
        got = "three quotes" if odd is None else f"character U+{ord(odd):04X}"
        raise ConfigError(f"Modelfile: a value cannot be written, got {got} in {value[:40]!r}; use --format gguf")
    return f'"""{value}"""'


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
