"""What is around the program: installing packages, installing it, counting tests. No package is installed here;
the package tools are stand-ins on a PATH of the test's own."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("RESNETD_BINARY", str(ROOT / "build/release/resnetd")))
TOOLS = ("sh", "env", "mktemp", "rm", "tail", "head", "sed", "echo", "make", "gcc", "cat")


class Machine:
    """A PATH with the tools above and stand-ins for the rest, which log how they were called."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "log"
        self.log.write_text("")
        for tool in TOOLS:
            (folder / tool).symlink_to(shutil.which(tool))

    def add(self, name, script):
        file = self.folder / name
        file.write_text('#!/bin/sh\necho "%s $*" >> %s\n%s\n' % (name, self.log, script))
        file.chmod(0o755)

    def run(self, *groups):
        done = subprocess.run([str(ROOT / "config/install-deps.sh"), *groups], env={"PATH": str(self.folder)},
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        done.out, done.err = done.stdout.decode(), done.stderr.decode()
        return done

    def calls(self, name):
        return [line for line in self.log.read_text().splitlines() if line.startswith(name + " ")]


@pytest.fixture
def machine(tmp_path):
    """Debian with a compiler, but pkg-config finds no library; root."""
    made = Machine(tmp_path)
    made.add("pkg-config", "exit 1")
    made.add("dpkg-query", "echo 'install ok installed'")
    made.add("apt-cache", "exit 0")
    made.add("apt-get", "exit 0")
    made.add("id", "echo 0")
    return made


def test_nothing_missing_needs_no_rights(machine):
    machine.add("pkg-config", "exit 0")
    machine.add("id", "echo 1000")
    done = machine.run("build")
    assert done.returncode == 0 and done.out == "" and done.err == ""
    assert not machine.calls("apt-get")


def test_root_installs_what_is_missing(machine):
    done = machine.run("build")
    assert done.returncode == 0, done.err
    update, install = machine.calls("apt-get")
    assert " update" in update
    packages = install.split("--no-install-recommends ")[1].split()
    assert packages == ["libmicrohttpd-dev", "libjpeg-dev", "libpng-dev", "libcjson-dev", "nettle-dev"]


def test_tests_need_more_than_the_program(machine):
    machine.add("dpkg-query", "exit 1")
    machine.add("pkg-config", "exit 0")
    machine.add("curl", "exit 0")
    machine.add("wget", "exit 0")
    done = machine.run("test")
    assert done.returncode == 0, done.err
    packages = machine.calls("apt-get")[1].split("--no-install-recommends ")[1].split()
    assert packages == ["python3", "python3-pytest", "python3-requests", "python3-pil", "python3-numpy", "python3-torch",
                        "python3-torchvision"]


def test_a_user_goes_through_sudo(machine):
    machine.add("id", "echo 1000")
    machine.add("sudo", 'exec "$@"')
    assert machine.run("build").returncode == 0
    assert all("apt-get" in call for call in machine.calls("sudo"))
    asked, update, install = machine.calls("sudo")  # first whether it may
    assert " update" in update and " install" in install and "apt-get" in asked
    assert len(machine.calls("apt-get")) == 3


def test_sudo_that_refuses_is_asked_once(machine):
    machine.add("id", "echo 1000")
    machine.add("sudo", "echo 'user is not in the sudoers file.' >&2; exit 1")
    done = machine.run("build")
    assert done.returncode == 1
    assert len(machine.calls("sudo")) == 1 and not machine.calls("apt-get")
    assert "not in the sudoers file" in done.err and "as root run: apt-get install libmicrohttpd-dev" in done.err


def test_neither_root_nor_sudo(machine):
    machine.add("id", "echo 1000")
    done = machine.run("build")
    assert done.returncode == 1
    assert "needs root or sudo" in done.err and "apt-get install libmicrohttpd-dev" in done.err
    assert not machine.calls("apt-get")


def test_another_distribution(machine):
    (machine.folder / "apt-get").unlink()
    done = machine.run("build")
    assert done.returncode == 1
    assert "libmicrohttpd-dev" in done.err and "no apt-get here" in done.err


def test_a_failed_installation_shows_why(machine):
    machine.add("apt-get", 'case "$*" in *install*) echo "E: no space left"; exit 100 ;; esac')
    done = machine.run("build")
    assert done.returncode == 1
    assert "E: no space left" in done.err and "failed" in done.err


def test_an_unreachable_source_need_not_matter(machine):
    machine.add("apt-get", 'case "$*" in *update*) exit 100 ;; esac')
    assert machine.run("build").returncode == 0


def test_unknown_group(machine):
    assert machine.run("everything").returncode == 2


# ---------------------------------------------------------------------------------------------- installing

def test_make_install(tmp_path):
    """The installed tree has all that the program needs, and runs from where it was put."""
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL") and not key.startswith("RESNETD_")}
    subprocess.run(["make", "-C", str(ROOT), "install", "B=%s" % BINARY.parent, "-o", str(BINARY), "PREFIX=/usr",
                    "DESTDIR=%s" % tmp_path], check=True, env=environment, stdout=subprocess.DEVNULL)
    done = subprocess.run([str(tmp_path / "usr/bin/resnetd"), "check-config"], cwd="/", env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    share = tmp_path / "usr/share/resnetd"
    assert "data %s" % share in done.stderr.decode()
    for folder, pattern in (("models", "*.json"), ("labels", "*.tsv"), ("weights", "*.safetensors")):
        names = sorted(path.name for path in (ROOT / "config" / folder).glob(pattern))
        assert sorted(path.name for path in (share / folder).iterdir()) == names


# ------------------------------------------------------------------------------------------------ counting

def tally(tmp_path, *arguments):
    environment = {**os.environ, "TALLY": str(tmp_path / "tally")}
    environment.pop("TALLY_OUTER", None)
    done = subprocess.run([sys.executable, str(ROOT / "tests/tally.py"), *arguments], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.returncode, done.stdout.decode()


def fake_test(tmp_path, name, text, status):
    file = tmp_path / name
    file.write_text("#!/bin/sh\ncat <<'EOF'\n%s\nEOF\nexit %d\n" % (text, status))
    file.chmod(0o755)
    return str(file)


def test_counts_add_up(tmp_path):
    good = fake_test(tmp_path, "test_good", "[  PASSED  ] 5 test(s).\n[  SKIPPED ] 2 test(s), listed below:", 0)
    bad = fake_test(tmp_path, "test_bad", "[  PASSED  ] 3 test(s).\n[  FAILED  ] 1 test(s), listed below:", 1)
    crashed = fake_test(tmp_path, "test_crashed", "[ RUN      ] something", 139)
    assert tally(tmp_path, "start")[0] == 0
    assert tally(tmp_path, "unit", good)[0] == 0
    assert tally(tmp_path, "check", "true", "true")[0] == 0
    assert tally(tmp_path, "total") == (0, "6 passed, 0 failed, 2 skipped\n")
    assert tally(tmp_path, "unit", good, bad, crashed)[0] == 1
    assert tally(tmp_path, "check", "false", "false")[0] == 1
    assert tally(tmp_path, "total") == (1, "14 passed, 3 failed, 4 skipped\n")


def test_pytest_is_counted(tmp_path):
    file = tmp_path / "test_x.py"
    file.write_text("import pytest\n\ndef test_a(): pass\n\ndef test_b(): assert 0\n\n"
                    "def test_c(): pytest.skip('no')\n")
    tally(tmp_path, "start")
    assert tally(tmp_path, "pytest", sys.executable, str(file))[0] == 1
    assert tally(tmp_path, "total")[1] == "1 passed, 1 failed, 1 skipped\n"
    file.write_text("import nonsense_that_is_not_there\n")
    assert tally(tmp_path, "pytest", sys.executable, str(file))[0] == 1
    assert tally(tmp_path, "total")[1] == "1 passed, 2 failed, 1 skipped\n"


def test_no_test_at_all_is_no_success(tmp_path):
    tally(tmp_path, "start")
    assert tally(tmp_path, "total") == (1, "0 passed, 0 failed, 0 skipped\n")
