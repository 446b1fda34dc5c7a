"""The same attack, led by coverage: atheris changes inputs towards lines of this package that none has reached yet.

    .venv-peers/bin/python -m benchmarks.fuzz_guided TARGET [-runs=20000] [libFuzzer's other options]

TARGET is one of benchmarks.fuzz's. Atheris ends the process after its runs, or at the first finding, whose input it
writes to a file. The package is one of requirements/peers.txt (make setup-peers). It follows Python only:
of the loaders what they do around pyarrow's, safetensors' and YAML's own code. Hypothesis stands between its bytes and
the input, which hides most of what a changed byte does: it reached 15 edges by parse_pair in 20,000 runs.
"""

import sys

import atheris

with atheris.instrument_imports(include=["rubric_influence"]):
    from benchmarks.fuzz import TARGETS, build_attack


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"{sys.argv[1:2]} is no target; one of {list(TARGETS)} is expected")
    attack = build_attack(sys.argv[1], inputs=1)
    # Hypothesis makes the input from atheris's bytes, so that both attack with inputs of one kind.
    atheris.Setup([sys.argv[0], *sys.argv[2:]], attack.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
