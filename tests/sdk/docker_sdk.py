"""What docker's SDK for Python does with a server: docker_sdk.py SOCKET RUNTIME.

Each function here is a test; a name it makes is the image's, the runtime's or its own. The first that fails ends it all.
"""

import io
import os
import sys
import tarfile
import tempfile
import threading
import time

import docker
from docker import errors
from docker.types import Mount

SOCKET, RUNTIME = sys.argv[1:3]
IMAGE = "debian"
client = docker.DockerClient(base_url="unix://" + SOCKET, timeout=400)


def shell(script, **more):
    """A container in the background that runs a script."""
    return client.containers.run(IMAGE, ["sh", "-c", script], runtime=RUNTIME, detach=True, **more)


def idle(**more):
    return shell("trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done", **more)


def await_up(container, times=1):
    """It has started so often, and knows what to do at a signal."""
    await_true("its first line", lambda: container.logs().count(b"up\n") == times)


def refused(status, act, *arguments, **more):
    """The call fails with this status of HTTP."""
    try:
        act(*arguments, **more)
    except errors.APIError as error:
        assert error.status_code == status, error
    else:
        raise AssertionError(f"{act} was not refused")


def await_true(what, test):
    for _ in range(2000):
        if test():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what} never came")


def a_server_says_what_it_is():
    assert client.ping()
    assert client.version()["ApiVersion"]
    info = client.info()
    assert info["ServerVersion"] and RUNTIME in info["Runtimes"], info
    assert "Images" in client.df()


def a_command_runs_and_its_output_and_end_come_back():
    words = dict(runtime=RUNTIME, remove=True)
    assert client.containers.run(IMAGE, ["echo", "one two"], **words) == b"one two\n"
    both = client.containers.run(IMAGE, ["sh", "-c", "echo out; echo err >&2"], stderr=True, **words)
    assert sorted(both.split()) == [b"err", b"out"], both
    try:
        client.containers.run(IMAGE, ["sh", "-c", "echo bad >&2; exit 3"], **words)
    except errors.ContainerError as error:
        assert (error.exit_status, error.stderr) == (3, b"bad\n"), error
    else:
        raise AssertionError("exit 3 went by")
    stream = client.containers.run(IMAGE, ["sh", "-c", "for n in 1 2 3; do echo $n; done"], stream=True, **words)
    assert b"".join(stream) == b"1\n2\n3\n"
    try:
        client.containers.create("no-such-image:1", runtime=RUNTIME)
    except errors.ImageNotFound:
        pass
    else:
        raise AssertionError("an image that is not there")
    given = client.containers.run(
        IMAGE,
        ["sh", "-c", "echo $NAME; pwd; id -u; hostname; cat /sys/class/net/*/operstate | wc -l"],
        environment={"NAME": "value"},
        working_dir="/tmp",
        user="1000",
        hostname="host",
        network_mode="none",
        mem_limit="256m",
        **words,
    )
    assert given == b"value\n/tmp\n1000\nhost\n1\n", given


def a_life_is_told_and_led():
    container = idle(name="life", labels={"kind": "test"})
    assert container.status in ("created", "running"), container.status
    container.reload()
    assert container.status == "running" and container.labels == {"kind": "test"}
    assert container.attrs["HostConfig"]["Runtime"] == RUNTIME, container.attrs["HostConfig"]
    assert container.image.tags == [IMAGE + ":latest"], container.image.tags
    assert [one.id for one in client.containers.list(filters={"label": "kind=test"})] == [container.id]
    container.rename("lives")
    assert client.containers.get("lives").id == container.id
    refused(404, client.containers.get, "life")
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    await_up(container)
    assert any("sleep" in " ".join(row) or "sh" in " ".join(row) for row in container.top()["Processes"])
    container.restart(timeout=60)
    await_up(container, 2)
    container.reload()
    assert container.status == "running"
    refused(409, container.remove)
    container.update(restart_policy={"Name": "on-failure", "MaximumRetryCount": 2})
    container.kill("TERM")
    assert container.wait()["StatusCode"] == 0
    container.start()
    await_up(container, 3)
    container.stop(timeout=60)
    container.reload()
    assert (container.status, container.attrs["State"]["ExitCode"]) == ("exited", 0)
    container.remove(v=True)
    refused(404, container.reload)
    refused(404, client.containers.get, "lives")


def logs_are_chosen_and_followed():
    container = shell("for n in 1 2 3; do echo line $n; done; echo err >&2; sleep 1; echo last")
    assert b"".join(container.logs(stream=True, follow=True)).count(b"\n") == 5
    assert container.logs(stdout=True, stderr=False) == b"line 1\nline 2\nline 3\nlast\n"
    assert container.logs(stdout=False, stderr=True) == b"err\n"
    assert container.logs(tail=1, stderr=False) == b"last\n"
    stamped = container.logs(timestamps=True, tail=1, stderr=False).decode()
    assert stamped.split(" ", 1)[0].endswith("Z") and stamped.endswith(" last\n"), stamped
    assert container.logs(since=int(time.time()) + 100) == b""
    container.remove(force=True)


def commands_run_beside_the_first():
    container = idle()
    ended = container.exec_run(["sh", "-c", "echo $A; pwd; exit 4"], environment={"A": "b"}, workdir="/tmp")
    assert (ended.exit_code, ended.output) == (4, b"b\n/tmp\n"), ended
    ended = container.exec_run(["sh", "-c", "echo out; echo err >&2"], demux=True)
    assert ended.output == (b"out\n", b"err\n"), ended
    ended = container.exec_run(["sh", "-c", "echo 1; sleep 0.2; echo 2"], stream=True)
    assert b"".join(ended.output) == b"1\n2\n"
    assert container.exec_run(["id", "-u"], user="1234").output == b"1234\n"
    assert container.exec_run(["no-such-command"]).exit_code in (126, 127)
    one = client.api.exec_create(container.id, ["cat"], stdin=True)["Id"]
    stream = client.api.exec_start(one, socket=True)
    stream._sock.sendall(b"there and back\n")
    assert frame(stream) == (1, b"there and back\n")
    stream._sock.shutdown(1)
    await_true("the end of cat", lambda: not client.api.exec_inspect(one)["Running"])
    assert client.api.exec_inspect(one)["ExitCode"] == 0
    stream.close()
    terminal = container.exec_run(["sh", "-c", "test -t 1 && stty size"], tty=True)
    assert terminal.exit_code == 0, terminal
    container.remove(force=True)
    refused(404, client.api.exec_create, container.id, ["true"])


def exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream._sock.recv(count - len(data))
        assert more, f"the end after {data}"
        data += more
    return data


def frame(stream):
    """Which stream of a command without a terminal, and what it wrote."""
    head = exactly(stream, 8)
    return head[0], exactly(stream, int.from_bytes(head[4:], "big"))


def a_client_attaches():
    container = client.containers.create(IMAGE, ["cat"], runtime=RUNTIME, stdin_open=True)
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    container.start()
    stream._sock.sendall(b"hello\n")
    assert frame(stream) == (1, b"hello\n")
    stream._sock.shutdown(1)
    stream.close()
    container.kill()
    container.remove(force=True)
    container = shell("echo before; sleep 2; echo after")
    await_true("the first line", lambda: container.logs() == b"before\n")
    assert b"".join(container.attach(stream=True, logs=True)) == b"before\nafter\n"
    container.remove(force=True)


def figures_come_once_and_all_the_time():
    container = idle()
    once = container.stats(stream=False)
    assert once["memory_stats"]["usage"] > 0 and once["cpu_stats"]["cpu_usage"]["total_usage"] > 0, once
    stream = container.stats(decode=True)
    both = [next(stream), next(stream)]
    assert both[1]["read"] > both[0]["read"], both
    stream.close()
    container.remove(force=True)


def events_are_told():
    begun = time.time()
    heard = []

    def listen():
        for event in client.events(decode=True, filters={"type": "container", "label": "heard"}):
            heard.append(event["Action"])
            if event["Action"] == "destroy":
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    time.sleep(0.5)
    container = shell("exit 5", labels={"heard": "yes"})
    assert container.wait()["StatusCode"] == 5
    container.remove()
    listener.join(60)
    assert not listener.is_alive(), heard
    for action in ("create", "start", "die", "destroy"):
        assert action in heard, heard
    past = client.events(since=int(begun), until=int(time.time()) + 1, decode=True, filters={"container": container.id})
    assert [event["Action"] for event in past] == heard


def images_are_named_built_and_moved():
    image = client.images.get(IMAGE)
    assert image.tag("sdk-copy", tag="1") and "sdk-copy:1" in client.images.get("sdk-copy:1").tags
    assert [one.id for one in client.images.list(name="sdk-copy")] == [image.id]
    assert image.history()[0]["Id"]
    archive = io.BytesIO(b"".join(client.images.get("sdk-copy:1").save(named="sdk-copy:1")))
    client.images.remove("sdk-copy:1")
    refused(404, client.images.get, "sdk-copy:1")
    loaded = client.images.load(archive.getvalue())
    assert loaded[0].id == image.id and "sdk-copy:1" in loaded[0].tags, loaded
    client.images.remove("sdk-copy:1")
    with tempfile.TemporaryDirectory() as context:
        with open(os.path.join(context, "Dockerfile"), "w") as file:
            file.write(f"FROM {IMAGE}\nARG WORD\nRUN echo $WORD >/word\nCOPY file /\nCMD [\"cat\", \"/word\", \"/file\"]\n")
        with open(os.path.join(context, "file"), "w") as file:
            file.write("copied\n")
        built, log = client.images.build(
            path=context, tag="sdk-built:1", buildargs={"WORD": "given"}, labels={"a": "b"}, rm=True
        )
        assert built.labels["a"] == "b" and "sdk-built:1" in built.tags, built.attrs
        said = [line.get("stream", "") for line in log]
        assert any("RUN echo $WORD" in line for line in said) and any(line.startswith("Successfully built") for line in said), said
        assert client.containers.run("sdk-built:1", runtime=RUNTIME, remove=True) == b"given\ncopied\n"
    for text, words in [(f"FROM {IMAGE}\nRUN exit 9\n", "9"), ("NONSENSE x\n", "unknown instruction")]:
        try:
            client.images.build(fileobj=io.BytesIO(text.encode()))
        except errors.BuildError as error:
            assert words in str(error), error
        else:
            raise AssertionError("a build that fails")
    client.images.remove("sdk-built:1", force=True)


def volumes_outlive_containers():
    name = "sdk-volume"
    volume = client.volumes.create(name, labels={"a": "b"})
    assert volume.name == name and volume.attrs["Labels"] == {"a": "b"}, volume.attrs
    assert client.volumes.get(name).id == volume.id
    assert [one.name for one in client.volumes.list(filters={"label": "a=b"})] == [name]
    words = dict(runtime=RUNTIME, remove=True)
    client.containers.run(IMAGE, ["sh", "-c", "echo kept >/data/file"], volumes={name: {"bind": "/data", "mode": "rw"}}, **words)
    mounts = [Mount("/other", name, read_only=True)]
    read = ["sh", "-c", "cat /other/file; echo x 2>/dev/null >/other/file || echo no"]
    assert client.containers.run(IMAGE, read, mounts=mounts, **words) == b"kept\nno\n"
    user = idle(volumes=[name + ":/data"])
    refused(409, volume.remove)
    user.remove(force=True)
    volume.remove()
    refused(404, client.volumes.get, name)


def networks_are_listed():
    names = [network.name for network in client.networks.list()]
    assert {"bridge", "none"} <= set(names), names
    assert client.networks.get("bridge").name == "bridge"
    refused(404, client.networks.get, "sdk-no-such-network")


def pack(name, data, mode, uid):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.uid, entry.gid = len(data), mode, uid, uid
        tar.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


def files_go_in_and_come_out():
    container = idle()
    data = os.urandom(300_000)
    assert container.put_archive("/tmp", pack("file", data, 0o640, 12))
    assert container.exec_run(["stat", "-c", "%s %a %u", "/tmp/file"]).output == b"300000 640 12\n"
    stream, told = container.get_archive("/tmp/file")
    assert (told["name"], told["size"]) == ("file", len(data)), told
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        entry = tar.getmember("file")
        assert (entry.mode & 0o777, entry.uid, tar.extractfile(entry).read()) == (0o640, 12, data)
    refused(404, container.put_archive, "/no-such-folder", pack("file", b"", 0o644, 0))
    refused(404, container.get_archive, "/no-such-file")
    assert {"Path": "/tmp/file", "Kind": 1} in container.diff(), container.diff()
    made = container.commit("sdk-committed", tag="1")
    assert client.containers.run(made.id, ["stat", "-c", "%s", "/tmp/file"], runtime=RUNTIME, remove=True) == b"300000\n"
    client.images.remove("sdk-committed:1")
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
        assert any(entry.name.lstrip("./") == "tmp/file" for entry in tar)
    container.remove(force=True)


def what_ended_is_pruned():
    container = shell("exit 0")
    container.wait()
    assert container.id in client.containers.prune()["ContainersDeleted"]
    refused(404, container.reload)


def main():
    tests = [
        a_server_says_what_it_is,
        a_command_runs_and_its_output_and_end_come_back,
        a_life_is_told_and_led,
        logs_are_chosen_and_followed,
        commands_run_beside_the_first,
        a_client_attaches,
        figures_come_once_and_all_the_time,
        events_are_told,
        images_are_named_built_and_moved,
        volumes_outlive_containers,
        networks_are_listed,
        files_go_in_and_come_out,
        what_ended_is_pruned,
    ]
    for test in tests:
        print(test.__name__, flush=True)
        test()
    assert client.containers.list(all=True) == []
    print("ALL", len(tests), flush=True)


main()
