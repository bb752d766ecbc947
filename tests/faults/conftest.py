"""How many faults are tried, and the table at the end.

``bash launch/test.sh faults --kills=5 --configs=20 --media=20`` tries fewer.
"""

import collections

KINDS = {
    "kill": ("kills", 50),
    "mutated_config": ("configs", 200),
    "mutated_file": ("media", 200),
    "mutated_saved": ("saved", 100),
}


def pytest_addoption(parser):
    """The numbers of faults."""
    for option, number in KINDS.values():
        parser.addoption(f"--{option}", type=int, default=number, help="How many are tried.")


def pytest_generate_tests(metafunc):
    """A test for each of them."""
    for name, (option, number) in KINDS.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, range(metafunc.config.getoption(option, number)))


def pytest_terminal_summary(terminalreporter):
    """Passed of all, by kind."""
    tried, passed = collections.Counter(), collections.Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if "tests/faults/" in report.nodeid and (report.when == "call" or outcome == "error"):
                file = report.nodeid.partition("::")[0].rpartition("/test_")[2]
                kind = file.removesuffix(".py").replace("_", " ")
                tried[kind] += 1
                passed[kind] += outcome == "passed"
    if tried:
        terminalreporter.section("faults")
        for kind, count in tried.items():
            terminalreporter.write_line(f"{kind:<18}{passed[kind]}/{count}")
