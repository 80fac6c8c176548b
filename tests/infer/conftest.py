"""What tests of the command line share: calling it in process."""

import pytest

from infer.cli import main


@pytest.fixture
def command(capsys):
    """Run the command line; gives status, standard output and standard error."""

    def call(*argv: object) -> tuple[int, str, str]:
        status = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def refused(command):
    """Run the command line and expect a refusal: status 2, nothing on standard output, one line that is returned."""

    def call(*argv: object) -> str:
        status, out, err = command(*argv)
        assert (status, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return call
