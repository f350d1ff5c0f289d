"""A real HDFS for tests: one NameNode and one DataNode on loopback.

The jars of Hadoop 2.7.3 come out of the sdist of pyspark 2.4.8; Java 17 runs them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import venv
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mesh.testing.fetched import NotToBeHad, fetched, needed_program, run
from mesh.testing.servers import HOST, ServerProcess, free_ports

PYSPARK = "2.4.8"
JAVA_MAX = 22  # later ones have no security manager, which Hadoop asks
JARS = (
    "hadoop-hdfs-2.7.3 hadoop-common-2.7.3 hadoop-auth-2.7.3 hadoop-annotations-2.7.3 "
    "guava-14.0.1 protobuf-java-2.5.0 jackson-mapper-asl-1.9.13 jackson-core-asl-1.9.13 "
    "netty-all-4.1.47.Final jetty-6.1.26 jetty-util-6.1.26 log4j-1.2.17 "
    "commons-collections-3.2.2 commons-configuration-1.6 commons-lang-2.6 "
    "commons-logging-1.1.3 commons-cli-1.2 commons-io-2.4 commons-codec-1.10 "
    "javax.servlet-api-3.1.0 slf4j-api-1.7.16 slf4j-log4j12-1.7.16 "
    "htrace-core-3.1.0-incubating javax.ws.rs-api-2.0.1"
)
NODES = "org.apache.hadoop.hdfs.server"
LOG4J = """\
log4j.rootLogger=INFO,c
log4j.appender.c=org.apache.log4j.ConsoleAppender
log4j.appender.c.target=System.err
log4j.appender.c.layout=org.apache.log4j.PatternLayout
log4j.appender.c.layout.ConversionPattern=%d %p %c: %m%n
"""


class Hdfs:
    """An HDFS within `with`; whoever asks is its superuser unless HADOOP_USER_NAME says else."""

    def __init__(self, directory: Path) -> None:
        """Keep everything under *directory*; raises `NotToBeHad` without Java or the jars."""
        self.directory = directory
        self._java = _java()
        self._jars = fetched(f"hadoop-of-pyspark-{PYSPARK}", _fetch_jars)
        self._ports = free_ports(5)
        self._running = ExitStack()
        self.url = f"hdfs://{HOST}:{self._ports[0]}"

    def __enter__(self) -> Self:
        self._write_config()
        run(*self._command("namenode.NameNode"), "-format", "-force", "-nonInteractive")
        with ExitStack() as starting:
            # Both at once: each waits for the other one to be whole.
            self.name_node = _Node(self._command("namenode.NameNode"), self.directory / "name-node")
            self.data_node = _Node(self._command("datanode.DataNode"), self.directory / "data-node")
            self.data_node.done = "Successfully sent block report"
            self.name_node.done = "NameNode RPC up at"
            starting.enter_context(self.name_node)
            starting.enter_context(self.data_node)
            self._running = starting.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running.close()

    def client(self) -> Any:
        """Return a client of hdfs-native's."""
        from hdfs_native import Client

        return Client(self.url)

    def write(self, path: str, data: bytes) -> None:
        """Write the file *path*, in place of what is there."""
        from hdfs_native import WriteOptions

        options = WriteOptions(overwrite=True, create_parent=True)
        with self.client().create(path, options) as file:
            file.write(data)

    def _command(self, node: str) -> list[str]:
        return [
            self._java,
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Djava.net.preferIPv4Stack=true",
            "-cp",
            f"{self.directory / 'conf'}:{self._jars}/*",
            f"{NODES}.{node}",
        ]

    def _write_config(self) -> None:
        conf = self.directory / "conf"
        for name in ("hdfs", "datanode", "secondary"):
            (conf / "webapps" / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "data").mkdir(mode=0o700, exist_ok=True)
        rpc, http, data, data_http, ipc = (f"{HOST}:{port}" for port in self._ports)
        core = {
            "fs.defaultFS": f"hdfs://{rpc}",
            "hadoop.tmp.dir": str(self.directory / "tmp"),
            "hadoop.security.authentication": "simple",
        }
        hdfs = {
            "dfs.namenode.name.dir": (self.directory / "name").as_uri(),
            "dfs.datanode.data.dir": (self.directory / "data").as_uri(),
            "dfs.namenode.rpc-address": rpc,
            "dfs.namenode.http-address": http,
            "dfs.datanode.address": data,
            "dfs.datanode.http.address": data_http,
            "dfs.datanode.ipc.address": ipc,
            "dfs.datanode.hostname": HOST,
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            "dfs.replication": "1",
            "dfs.webhdfs.enabled": "false",
            "dfs.namenode.fs-limits.min-block-size": "4096",
            "dfs.blocksize": "1048576",
            "dfs.namenode.safemode.extension": "0",
            "dfs.heartbeat.interval": "1",
        }
        (conf / "core-site.xml").write_text(_xml(core))
        (conf / "hdfs-site.xml").write_text(_xml(hdfs))
        (conf / "log4j.properties").write_text(LOG4J)


class _Node(ServerProcess):
    """A NameNode or a DataNode; is ready when its log says *done*."""

    done = ""

    def is_ready(self) -> bool:
        return self.done in self.log.read_text(errors="replace")


def _java() -> str:
    """Return a Java that runs Hadoop 2.7; raises `NotToBeHad` without one."""
    java = needed_program("java", "openjdk-17-jre-headless")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) > JAVA_MAX:
        raise NotToBeHad(
            f"needs Java of at most {JAVA_MAX}: apt-get install openjdk-17-jre-headless"
        )
    return java


def _xml(properties: dict[str, str]) -> str:
    lines = (
        f"<property><name>{k}</name><value>{v}</value></property>" for k, v in properties.items()
    )
    return "\n".join(["<configuration>", *lines, "</configuration>"])


def _fetch_jars(place: Path) -> None:
    """Put the jars into *place*. The sdist's metadata is built with old tools: they get a venv."""
    tools, sdist = place / "tools", place / f"pyspark-{PYSPARK}.tar.gz"
    venv.create(tools, with_pip=True)
    pip = tools / "bin" / "pip"
    run(pip, "install", "-q", "wheel", "setuptools<70")
    flags = ("--no-deps", "--no-build-isolation", "--no-binary", "pyspark")
    run(pip, "download", "-q", *flags, "-d", place, f"pyspark=={PYSPARK}")
    wanted = {f"pyspark-{PYSPARK}/deps/jars/{jar}.jar" for jar in JARS.split()}
    with tarfile.open(sdist) as packed:
        for member in packed:
            if member.name in wanted:
                member.name = Path(member.name).name
                packed.extract(member, place, filter="data")
    shutil.rmtree(tools)
    sdist.unlink()
