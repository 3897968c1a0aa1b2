"Faults, with real processes: they cost no finished row, double none, and the rest is made on resumption."

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.locks import locked
from pruneresearch.lab.bench import bench
from pruneresearch.lab.execution import execute
from pruneresearch.lab.runs import plan

CLI = [sys.executable, "-c", "import sys; from pruneresearch.cli.main import main; sys.exit(main())"]
BODY = """
import time
from pathlib import Path
from pruneresearch.basics.files import write_json
with open(Path(results)/'attempts', 'a') as file: file.write(f'{x}\\n')
time.sleep(pause)
write_json(Path(results)/'rows'/f'{x}.json', {'x': x, 'filler': '.' * filler})
write_json(done, {'rows': [f'{x}']})
"""


def make_checkout(folder, runs, body=BODY):
    "A checkout with one benchmark: a row a run, after a pause."
    (folder / "nbs" / "benchmarks").mkdir(parents=True)
    (folder / "settings.ini").touch()
    cells = [
        ("x = 0; pause = 0.0; filler = 0; results = output = done = None", "parameters"),
        (f"profiles = {{'smoke': {runs!r}}}", "profiles"),
        (body, ""),
    ]
    made = [nbformat.v4.new_code_cell(source, metadata={"tags": [tag] if tag else []}) for source, tag in cells]
    nbformat.write(
        nbformat.v4.new_notebook(
            metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}, cells=made
        ),
        folder / "nbs" / "benchmarks" / "short.ipynb",
    )
    return folder


def environment(**more):
    "This package, wherever the tests take it from, and one thread; None unsets a variable."
    import pruneresearch

    paths = [str(more.pop("site", "")), str(Path(pruneresearch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    settings = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        **more,
    }
    return {name: value for name, value in settings.items() if value is not None}


def driver(checkout, *words, **settings):
    """`pruneresearch bench` in a process of its own. It obeys Ctrl-C also where these tests do not:
    a shell lets what it starts in the background ignore it."""
    return subprocess.Popen(
        [*CLI, "bench", "--profile", "smoke", *words],
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**settings),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


LIGHT = """
import json, os
def execute_notebook(notebook, target, parameters, cwd, **how):
    book, space = json.load(open(notebook)), {}
    for cell in book["cells"]:
        cell["metadata"]["papermill"] = {"start_time": "now"}
    json.dump(book, open(target, "w"))
    os.chdir(cwd)
    for cell in book["cells"]:
        exec("".join(cell["source"]), space)
        space.update(parameters if "parameters" in cell["metadata"].get("tags", []) else {})
"""


@pytest.fixture
def without_kernels(tmp_path_factory, monkeypatch):
    "Where a test is about drivers and workers: a run's process executes the cells itself, in place of a kernel."
    folder = tmp_path_factory.mktemp("light")
    (folder / "papermill.py").write_text(LIGHT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


def finish(process, seconds=240):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def until(condition, seconds=240):  # patience with a machine that does much else
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def attempts(checkout):
    return (
        Counter((checkout / "runs" / "attempts").read_text().split())
        if (checkout / "runs" / "attempts").is_file()
        else Counter()
    )


def rows(checkout):
    return {path.stem: path.stat().st_mtime_ns for path in (checkout / "runs" / "rows").glob("*.json")}


def working_on(folder):
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(p.info["cmdline"] or ()) and "run_in_child" in " ".join(p.info["cmdline"])
    ]


def complete(checkout, count, before=(), **how):
    "Resume, and look: every row once, the earlier ones untouched."
    kept = {name: stamp for name, stamp in rows(checkout).items() if name in before} if before else rows(checkout)
    outcome = bench(profile="smoke", root=checkout, say=lambda line: None, jobs=2, **how)
    assert {r["status"] for r in outcome} <= {"done", "skipped"}, outcome
    found = rows(checkout)
    assert sorted(found) == sorted(map(str, range(count))) and kept.items() <= found.items()
    return outcome


# ---- one machine


def test_killed_driver_takes_its_runs_along_and_is_resumed(tmp_path):
    checkout = make_checkout(tmp_path, [dict(x=0), dict(x=1, pause=60), dict(x=2)])
    process = driver(checkout)
    until(lambda: attempts(checkout)["1"])
    kernel = working_on(checkout)[0].children(recursive=True)
    assert rows(checkout).keys() == {"0"} and kernel
    process.kill()
    process.wait()
    until(
        lambda: (
            not working_on(checkout) and not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in kernel)
        ),
        15,
    )  # nothing runs on unseen
    notebook = checkout / "nbs" / "benchmarks" / "short.ipynb"
    notebook.write_text(notebook.read_text().replace("'pause': 60", "'pause': 0"))
    complete(checkout, 3)
    assert attempts(checkout) == {"0": 1, "1": 2, "2": 1}


def test_ctrl_c_ends_the_runs_says_so_and_is_resumed(tmp_path):
    checkout = make_checkout(tmp_path, [dict(x=0), dict(x=1, pause=60), dict(x=2)])
    process = driver(checkout)
    until(lambda: attempts(checkout)["1"])
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, 20)
    assert (
        code == 1
        and err.strip() == "pruneresearch: interrupted; finished results are kept, run the same command again to go on."
    )
    assert not working_on(checkout) and rows(checkout).keys() == {"0"}
    notebook = checkout / "nbs" / "benchmarks" / "short.ipynb"
    notebook.write_text(notebook.read_text().replace("'pause': 60", "'pause': 0"))
    complete(checkout, 3)


def test_two_drivers_share_a_folder(tmp_path, without_kernels):
    checkout = make_checkout(tmp_path, [dict(x=x, pause=1.5) for x in range(6)])
    both = [driver(checkout) for _ in range(2)]
    told = [finish(process) for process in both]
    assert [code for code, *_ in told] == [0, 0], told
    assert attempts(checkout) == {str(x): 1 for x in range(6)} and len(rows(checkout)) == 6
    made = [out.count(" done    short") for _, out, _ in told]
    assert sum(made) == 6 and min(made) > 0, told  # neither did it all, and neither did what the other one did


@pytest.mark.parametrize("what", ["result", "row"])
def test_a_file_cut_short_is_made_again(tmp_path, without_kernels, what):
    checkout = make_checkout(tmp_path, [dict(x=0), dict(x=1)])
    first = bench(profile="smoke", root=checkout, say=lambda line: None)
    path = Path(first[0]["folder"]) / "result.json" if what == "result" else checkout / "runs" / "rows" / "0.json"
    path.write_text(path.read_text()[:7])
    outcome = bench(profile="smoke", root=checkout, say=lambda line: None)
    assert sorted(r["status"] for r in outcome) == ["done", "skipped"] and "cut short" in next(
        r["reason"] for r in outcome if r["status"] == "done"
    )
    assert (
        all(json.loads(path.read_text()) for path in (checkout / "runs" / "rows").iterdir())
        and len(rows(checkout)) == 2
    )


@pytest.mark.slow
def test_a_full_disk_fails_a_run_and_nothing_else(tmp_path, small_disk):
    checkout = make_checkout(tmp_path, [dict(x=0), dict(x=1, filler=11 * 10**5), dict(x=2)])
    (checkout / "runs").symlink_to(small_disk)
    for _ in range(2):
        outcome = bench(profile="smoke", root=checkout, say=lambda line: None)
        failed = [r for r in outcome if r["status"] == "failed"]
        assert len(failed) == 1 and failed[0]["reason"] == "the disk is full: free some space", outcome
        assert rows(checkout).keys() == {"0", "2"} and not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    complete(checkout, 3)


def test_a_disk_without_any_room(tmp_path, small_disk):
    checkout = make_checkout(tmp_path, [dict(x=0)])
    (checkout / "runs").symlink_to(small_disk)
    with pytest.raises(OSError):
        (small_disk / "everything").write_bytes(bytes(10**7))
    code, out, err = finish(driver(checkout))
    assert code == 1 and "the disk is full: free some space" in err and "Traceback" not in err
    (small_disk / "everything").unlink()
    complete(checkout, 1)


CLOCK = """import sys, time
real, start = time.time, time.monotonic()
def jumping():
    "A day to and fro, but for jupyter_client: it waits for its kernel by this clock and gives up where it jumps on."
    waits = sys._getframe(1).f_globals.get('__name__', '').startswith('jupyter_client')
    return real() + (0 if waits else 86400 * (-1) ** int((time.monotonic() - start) * 3))
time.time = jumping
"""
OFFLINE = """import errno, socket
HERE = ('127.0.0.1', 'localhost', '::1')
class Socket(socket.socket):
    def connect(self, address):
        if isinstance(address, tuple) and address[0] not in HERE:
            raise OSError(errno.ENETUNREACH, 'Network is unreachable')
        return super().connect(address)
socket.socket = Socket
def unknown(name, *rest, _real=socket.getaddrinfo, **more):
    if name not in (*HERE, None, ''):
        raise socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')
    return _real(name, *rest, **more)
socket.getaddrinfo = unknown
"""
REAL = "from pruneresearch import load_model, load_task\nassert load_model('mlp', load_task('digits')) is not None\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "weather, body",
    [(CLOCK, BODY), (OFFLINE, REAL + BODY)],
    ids=["the clock jumps a day to and fro", "the network is off"],
)
def test_weather_that_no_run_notices(tmp_path, weather, body):
    checkout = make_checkout(tmp_path / "checkout", [dict(x=0, pause=0.5), dict(x=1, pause=0.5)], body)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(weather)
    code, out, err = finish(driver(checkout, "--jobs", "2", site=tmp_path / "site", HF_HUB_OFFLINE="0"))
    assert code == 0 and rows(checkout).keys() == {"0", "1"} and out.count(" done    short") == 2, (out, err)
    assert "-" not in out.replace("--", ""), out  # no negative time


def test_a_run_that_holds_too_much_is_one_failed_run(tmp_path):
    checkout = make_checkout(
        tmp_path,
        [dict(x=0), dict(x=1)],
        BODY.replace("time.sleep(pause)", "held = b'.' * (2**29 if x else 1); time.sleep(30 if x else 0)"),
    )
    code, out, err = finish(driver(checkout, "--memory", "0.4"))
    assert code == 1 and rows(checkout).keys() == {"0"} and "0.40 GiB are allowed" in err and "Traceback" not in err
    assert not working_on(checkout)


# ---- a cluster


def dask(checkout, *words, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *words, "--no-dashboard"],
        cwd=checkout,
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@contextmanager
def cluster_of(checkout, workers=2, *flags):
    "A scheduler and workers of one thread; gives (address, worker processes)."
    from distributed.utils import open_port

    address = f"tcp://127.0.0.1:{open_port()}"
    with ExitStack() as stack:

        def started(*words):
            process = dask(checkout, *words)
            stack.callback(lambda: (fell(process.pid), process.wait()))
            return process

        scheduler = started("scheduler", "--host", address)
        yield (
            address,
            [
                started("worker", address, "--nthreads", "1", "--local-directory", str(checkout / "scratch"), *flags)
                for _ in range(workers)
            ],
            scheduler,
        )


def fell(pid):
    "A whole machine goes: a process and all that it has started, at once."
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def worker_of(run_process, workers):
    "Which worker a run's process belongs to."
    parents = {p.pid for p in run_process.parents()}
    return next(worker for worker in workers if worker.pid in parents)


@pytest.mark.slow
@pytest.mark.parametrize(
    "nanny, whole", [("--no-nanny", False), ("--nanny", True)], ids=["the worker alone", "the whole machine"]
)
def test_a_worker_dies_and_another_one_takes_its_run(tmp_path, nanny, whole):
    checkout = make_checkout(tmp_path, [dict(x=x, pause=4) for x in range(4)])
    with cluster_of(checkout, 2, nanny) as (address, workers, _):
        process = driver(checkout, "--cluster", address)
        until(lambda: sum(attempts(checkout).values()) == 2)
        run = until(lambda: working_on(checkout))[0]
        victim = worker_of(run, workers)
        if whole:
            fell(victim.pid)
        else:
            victim.kill()
        until(lambda: not run.is_running() or run.status() == psutil.STATUS_ZOMBIE, 15)
        code, out, err = finish(process)
        assert code == 0 and out.count(" done    short") == 4, (out, err)
        from distributed import Client

        with Client(address, set_as_default=False) as client:
            assert len(client.scheduler_info()["workers"]) == 1
    assert sorted(rows(checkout)) == list("0123") and sorted(attempts(checkout).values()) == [1, 1, 1, 2]


def test_a_killed_driver_of_a_cluster(tmp_path, without_kernels):
    "What is under way goes on, and the next driver finds it."
    checkout = make_checkout(tmp_path, [dict(x=x, pause=4) for x in range(4)])
    with cluster_of(checkout) as (address, *_):
        process = driver(checkout, "--cluster", address)
        until(lambda: sum(attempts(checkout).values()) == 2)
        process.kill()
        process.wait()
        complete(checkout, 4, address=address)
    assert attempts(checkout) == {str(x): 1 for x in range(4)}


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_of_a_cluster(tmp_path):
    checkout = make_checkout(tmp_path, [dict(x=x, pause=60) for x in range(3)])
    with cluster_of(checkout) as (address, *_):
        process = driver(checkout, "--cluster", address)
        until(lambda: sum(attempts(checkout).values()) == 2)
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process, 30)
        assert code == 1 and "run the same command again" in err and "Traceback" not in err, err
        until(lambda: not working_on(checkout), 15)
        assert sum(attempts(checkout).values()) == 2  # the third never began


@pytest.mark.slow
def test_the_scheduler_goes(tmp_path, without_kernels):
    checkout = make_checkout(tmp_path, [dict(x=x, pause=3) for x in range(4)])
    with cluster_of(checkout, 1) as (address, _, scheduler):
        process = driver(checkout, "--cluster", address)
        until(lambda: len(rows(checkout)) == 1)
        fell(scheduler.pid)
        code, _, err = finish(process, 60)
        assert code == 1 and err.startswith("pruneresearch: the scheduler is gone: finished runs are kept"), err
    until(lambda: not working_on(checkout), 15)
    complete(checkout, 4)


@pytest.mark.slow
def test_the_last_worker_goes_and_a_new_one_comes(tmp_path, without_kernels):
    checkout = make_checkout(tmp_path, [dict(x=x, pause=2) for x in range(2)])
    with cluster_of(checkout, 1, "--no-nanny") as (address, workers, _):
        process = driver(checkout, "--cluster", address)
        until(lambda: attempts(checkout))
        workers[0].kill()
        time.sleep(5)
        new = dask(
            checkout, "worker", address, "--nthreads", "1", "--no-nanny", "--local-directory", str(checkout / "scratch")
        )
        try:
            code, out, err = finish(process)
        finally:
            fell(new.pid)
            new.wait()
        assert code == 0 and "no worker answers" in out and len(rows(checkout)) == 2, (out, err)


def test_a_gpu_is_taken_by_one_run(tmp_path, without_kernels):
    "Two threads, one GPU: one run at a time; and a worker without one gets none."
    body = BODY.replace("time.sleep(pause)", "begun = time.time(); time.sleep(pause)").replace(
        "'filler': '.' * filler", "'begun': begun, 'ended': time.time()"
    )
    checkout = make_checkout(tmp_path, [dict(x=x, pause=1) for x in range(3)], body)
    with cluster_of(checkout, 1, "--resources", "GPU=1") as (address, *_), ExitStack() as stack:
        other = dask(checkout, "worker", address, "--nthreads", "2", "--local-directory", str(checkout / "scratch"))
        stack.callback(lambda: (fell(other.pid), other.wait()))
        from distributed import Client

        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        complete(checkout, 3, address=address)
        with pytest.raises(UsageError, match="no worker offers GPU=2"):
            bench(profile="smoke", root=checkout, address=address, resources={"GPU": 2})
    spans = sorted(
        (row["begun"], row["ended"])
        for row in (json.loads(path.read_text()) for path in (checkout / "runs" / "rows").iterdir())
    )
    assert all(ended <= begun for (_, ended), (begun, _) in zip(spans, spans[1:], strict=False))


def test_addresses_that_lead_nowhere(tmp_path):
    checkout = make_checkout(tmp_path, [dict(x=0)])
    with pytest.raises(RunError, match="no scheduler answers"):
        bench(profile="smoke", root=checkout, address="tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match="not the address of a scheduler"):
        bench(profile="smoke", root=checkout, address="here")


def test_a_worker_that_does_not_fit():
    from pruneresearch.lab.pools import _misfit

    wanted = dict(torch="2.13.0", python="3.11.2")
    assert _misfit("w", dict(wanted, folder=True), wanted) == ""
    assert "torch 2.12.0, not 2.13.0" in _misfit("w", dict(wanted, torch="2.12.0", folder=True), wanted)
    assert "does not see the folder" in _misfit("w", dict(wanted, folder=False), wanted)


OTHER = """import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: '0.1' if name == 'datasets' else real(name)
"""


@pytest.mark.slow
def test_a_worker_that_comes_later_and_does_not_fit_is_sent_away(tmp_path, without_kernels):
    checkout = make_checkout(tmp_path / "checkout", [dict(x=x, pause=2) for x in range(6)])
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OTHER)
    with cluster_of(checkout, 1) as (address, *_), ExitStack() as stack:
        process = driver(checkout, "--cluster", address)
        until(lambda: attempts(checkout))
        other = dask(
            checkout,
            "worker",
            address,
            "--nthreads",
            "1",
            "--local-directory",
            str(checkout / "scratch"),
            site=tmp_path / "site",
        )
        stack.callback(lambda: (fell(other.pid), other.wait()))
        code, out, err = finish(process)
        assert (
            code == 0
            and out.count(" done    short") == 6
            and out.count("datasets 0.1, not ") == 1
            and "it was sent away" in out
        ), (out, err)
        from distributed import Client

        with Client(address, set_as_default=False) as client:
            assert len(client.scheduler_info()["workers"]) == 1
    assert attempts(checkout) == {str(x): 1 for x in range(6)}


@pytest.mark.parametrize("asked", [None, "3"])
def test_runs_of_a_worker_share_the_cores_of_its_machine(tmp_path, without_kernels, asked):
    "Whatever the worker has in its environment, where Dask writes a 1."
    from pruneresearch.lab.execution import THREADS, share_of_cores

    checkout = make_checkout(
        tmp_path,
        [dict(x=0)],
        BODY.replace("'filler': '.' * filler", f"'threads': [__import__('os').environ[name] for name in {THREADS}]"),
    )
    with cluster_of(checkout, 1, "--nthreads", "2") as (address, *_):
        code, out, err = finish(driver(checkout, "--cluster", address, OMP_NUM_THREADS=asked))
        assert code == 0, (out, err)
    assert (
        json.loads((checkout / "runs" / "rows" / "0.json").read_text())["threads"]
        == [asked or str(share_of_cores(2))] * 3
    )


def test_who_finds_a_run_taken_leaves_its_log_alone(tmp_path):
    checkout = make_checkout(tmp_path, [dict(x=0)])
    [run] = plan([], "smoke", checkout / "runs", checkout)
    run.folder.mkdir(parents=True)
    (run.folder / "log.txt").write_text("so far\n")
    with locked(run.folder / "run"):
        assert (
            execute(run, checkout / "runs", wait=False)["status"] == "busy"
            and (run.folder / "log.txt").read_text() == "so far\n"
        )
    assert execute(run, checkout / "runs")["status"] == "done" and "so far" not in (run.folder / "log.txt").read_text()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunError, match="knows no locks"), locked(tmp_path / "run"):
        pass


# ---- many


def until_rows(checkout, count, process):
    until(lambda: len(rows(checkout)) >= count or process.poll() is not None, 900)


@pytest.mark.slow
def test_two_hundred_runs_and_three_kills(tmp_path, without_kernels):
    "Two workers; at three random moments something is killed: a run's process, a worker, the driver."
    checkout, chance = make_checkout(tmp_path, [dict(x=x) for x in range(200)]), random.Random(0)
    moments = sorted(chance.sample(range(10, 190), 3))
    with cluster_of(checkout) as (address, workers, _):
        process = driver(checkout, "--cluster", address)
        for moment, what in zip(moments, chance.sample(["run", "worker", "driver"], 3), strict=True):
            until_rows(checkout, moment, process)
            assert process.poll() is None, finish(process)
            if what == "run":
                until(lambda: working_on(checkout))[0].kill()
            if what == "worker":
                max(
                    psutil.Process(chance.choice(workers).pid).children(), key=lambda p: p.memory_info().rss
                ).kill()  # its nanny starts another one
            if what == "driver":
                process.kill()
                process.wait()
                process = driver(checkout, "--cluster", address)
        code, out, err = finish(process, 900)
        if code:
            code, out, err = finish(
                driver(checkout, "--cluster", address), 900
            )  # the run whose process was killed is a failed one: resume
        assert code == 0, (out[-500:], err)
    found = [json.loads(path.read_text())["x"] for path in (checkout / "runs" / "rows").iterdir()]
    assert sorted(found) == list(range(200))
