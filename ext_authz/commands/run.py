# SPDX-License-Identifier: Apache-2.0
"""`idmesh run`: the node. Reads sources, publishes snapshots, serves ext_authz, and runs Envoy if asked to."""

from __future__ import annotations

import argparse
import asyncio
import grp
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ext_authz import logs
from ext_authz.agent.admin import Admin, admin_of
from ext_authz.agent.cgroups import base, envoy_cgroup
from ext_authz.agent.children import Children
from ext_authz.agent.compiling import Compiling
from ext_authz.agent.datapath import Datapath, DatapathError, Mode
from ext_authz.agent.datapath_sizes import SizeError, parse_size
from ext_authz.agent.datapath_strangers import find_strangers
from ext_authz.agent.datapath_support import why_not
from ext_authz.agent.listeners import taken_listeners
from ext_authz.agent.node import Node
from ext_authz.agent.observing import Observing
from ext_authz.agent.proxy import Proxy
from ext_authz.cli import Failure
from ext_authz.commands.envoy import add_tls_arguments, tls_words
from ext_authz.envoy_binary import MODULE, EnvoyNotFound, find_envoy
from ext_authz.logs import escape, event
from ext_authz.model.settings import SettingsError, parse_settings
from ext_authz.service.listen import AddressError, parse_address
from ext_authz.service.pool import Pool
from ext_authz.state import State, StateError, default_state, write_atomic

log = logging.getLogger(__name__)

_GROUP = "idmesh"
_STEERED_PORT = 15001
_QUIET = ["--component-log-level", "main:warning"]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "run",
        help="run a node: publish policies, serve decisions",
        description="Watch policies and endpoints, publish snapshots, serve ext_authz, run Envoy.",
    )
    _add_sources(parser)
    _add_doors(parser)
    parser.add_argument(
        "--cleanup",
        action="store_true",
        help="take everything of the data path off this host, and end (1: some is left)",
    )
    parser.add_argument("--grace", type=float, default=5.0, metavar="S", help="how long to drain at SIGTERM (5)")
    parser.set_defaults(run=run)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policies", action="append", default=[], metavar="PATH", help="file or folder; repeatable")
    parser.add_argument("--endpoints", action="append", default=[], metavar="PATH", help="pods, namespaces, services")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (/run/idmesh for root)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="pairs", help="an agent setting"
    )
    parser.add_argument("--settings", metavar="FILE", help="agent settings as a YAML map")
    parser.add_argument("--node", metavar="NAME", help="name of the own Node")
    parser.add_argument("--flows", default="", metavar="FILE", help="write flow lines to FILE; -: to stdout")
    parser.add_argument("--metrics", default="", metavar="ADDR", help="serve Prometheus metrics at HOST:PORT")
    parser.add_argument("--log-format", choices=logs.FORMATS, help="of the log on stderr (text; IDMESH_LOG_FORMAT)")
    parser.add_argument(
        "--datapath", choices=tuple(map(str, Mode)), default="auto", help="judge in the kernel (auto: where it can be)"
    )

    parser.add_argument(
        "--map-size", action="append", default=[], metavar="MAP=ROWS", help="of the data path; repeatable"
    )


def _add_doors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grpc", metavar="ADDR", help="serve ext_authz and ext_proc at unix:PATH or HOST:PORT (loopback)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes: PATH.0..N-1 or PORT..PORT+N-1")
    parser.add_argument(
        "--direction", choices=("ingress", "egress", "both"), help="if Envoy's filter does not say (ingress)"
    )
    envoy = parser.add_mutually_exclusive_group()
    envoy.add_argument("--envoy", type=Path, metavar="FILE", help="also run Envoy with this configuration")
    envoy.add_argument("--door", choices=("module", "ext-authz", "ext-proc"), help="also run Envoy with this door")
    parser.add_argument("--listen", metavar="ADDR", help="where that Envoy listens (--door)")
    parser.add_argument(
        "--upstream",
        metavar="ADDR",
        action="append",
        default=[],
        help="what is behind it (--door); without, --datapath on steers connections to it (module)",
    )
    parser.add_argument("--destination", default="", metavar="WHOSE", help="whose policy judges (--door; see envoy)")
    parser.add_argument("--mode", choices=("http", "tcp"), help="whether requests are judged (http; --door)")
    add_tls_arguments(parser.add_argument_group("TLS of that Envoy's listener (--door)"))
    parser.add_argument("--concurrency", type=int, metavar="N", help="Envoy's worker threads")
    parser.add_argument("--envoy-arg", action="append", default=[], metavar="ARG", help="one more word for Envoy")


def run(args: argparse.Namespace) -> int:
    if args.cleanup:
        return _clean_up(args)
    _check(args)
    if args.log_format:
        os.environ[logs.FORMAT_VARIABLE] = args.log_format  # for the processes that we start, too
    logs.install(_log_level() if args.verbose < 2 else "DEBUG")
    state = State((args.state or default_state()).absolute())
    try:
        state.prepare()
        with state.owned():
            asyncio.run(_make_node(args, state).run())
    except (StateError, AddressError, EnvoyNotFound, DatapathError) as error:
        raise Failure(str(error)) from error
    return 0


def _clean_up(args: argparse.Namespace) -> int:
    """Exit: 1 if something could not be put back as it was, or programs of another state directory judge here."""
    from ext_authz.agent.datapath_cleanup import clean_up, is_there

    logs.install(_log_level())
    state = State((args.state or default_state()).absolute())
    if not is_there(state):
        print(escape(f"idmesh run --cleanup: {state.root}: nothing of a data path was there"), file=sys.stderr)
        problems = [str(one) for one in find_strangers(state, base())]
    else:
        try:
            state.prepare()
            with state.owned():
                problems = clean_up(state)
        except StateError as error:
            raise Failure(str(error)) from error
    for problem in problems:
        print(escape(f"idmesh run --cleanup: {problem}"), file=sys.stderr)
    return int(bool(problems))


def _check(args: argparse.Namespace) -> None:
    """Whatever can be wrong with the words is said before anything starts."""
    if not args.policies:
        raise Failure("--policies is needed")
    if args.datapath == Mode.ON and (reason := why_not()):
        raise Failure(f"--datapath on: {reason}")
    if args.door and not _is_steered(args) and not (args.listen and args.upstream):
        raise Failure("--door needs --listen and --upstream")
    if _is_steered(args) and _proxy_port(args) == 0:
        raise Failure("--listen must be 127.0.0.1:PORT where connections are steered")
    _check_words_of_doors(args)
    if not args.door and (words := tls_words(args)):
        raise Failure(f"{words[0].partition('=')[0]} needs --door")
    if args.flows not in ("", "-") and not Path(args.flows).absolute().parent.is_dir():
        raise Failure(f"--flows {escape(args.flows)}: its folder is not there")
    if args.workers < 1:
        raise Failure("--workers must be at least 1")
    if args.concurrency is not None and args.concurrency < 0:
        raise Failure("--concurrency must not be negative")
    if not 0 <= args.grace < math.inf:
        raise Failure("--grace must be a number of seconds, not negative")
    if args.envoy and not args.envoy.is_file():
        raise Failure(f"--envoy {args.envoy}: no such file")
    for path in [*args.policies, *args.endpoints]:
        if "\0" in path:
            raise Failure("a path holds a NUL")
    try:
        parse_settings(args.pairs, args.settings)
        sizes = [parse_size(text) for text in args.map_size]
        if len(dict(sizes)) < len(sizes):
            raise Failure("--map-size: a map is named twice")
        if args.grpc:
            parse_address(args.grpc).worker(args.workers - 1, args.workers)
        if args.metrics and parse_address(args.metrics).path:
            raise Failure("--metrics needs HOST:PORT")
    except (SettingsError, SizeError, AddressError) as error:
        raise Failure(str(error)) from error


def _check_words_of_doors(args: argparse.Namespace) -> None:
    """A word that would say nothing is refused: whoever gave it believes that it does."""
    if not args.door and (args.listen or args.upstream or args.destination or args.mode):
        raise Failure("--listen, --upstream, --destination and --mode need --door")
    if args.direction and not (args.door or args.grpc):
        raise Failure("--direction needs --door or --grpc; --envoy FILE has its own")
    if _is_steered(args):
        # The services of --grpc go by a direction, whatever else is steered.
        direction = None if args.grpc else args.direction
        given = {"--mode": args.mode, "--destination": args.destination, "--direction": direction}
        for option in filter(given.get, given):
            raise Failure(
                f"{option}: says nothing where connections are steered to Envoy (--door module without --upstream, "
                "--datapath on): the kernel tells of each one whose policies judge it, in which directions, and "
                "whether its requests too"
            )


def _unsteered(args: argparse.Namespace) -> str:
    """Why --datapath on finds no Envoy for what must be judged by one; empty: it does, or none was asked for."""
    if args.datapath != Mode.ON or _is_steered(args) or not (args.envoy or args.door):
        return ""
    option = "--envoy" if args.envoy else "--upstream" if args.door == "module" else f"--door {args.door}"
    return (
        f"{option}: --datapath on steers no connection to such an Envoy; what only one can judge is refused "
        "(180). --door module without --upstream runs one for it"
    )


def _is_steered(args: argparse.Namespace) -> bool:
    """
    Connections come to Envoy from the data path, each with its own destination. Only where that is asked for by name:
    a word that was forgotten must not change how a host routes.
    """
    return args.door == "module" and not args.upstream and args.datapath == Mode.ON


def _proxy_port(args: argparse.Namespace) -> int:
    """Where Envoy listens for steered connections; 0: nowhere, or at no address that they can reach."""
    if not _is_steered(args):
        return 0
    host, _, port = str(args.listen or f"127.0.0.1:{_STEERED_PORT}").rpartition(":")
    return int(port) if host == "127.0.0.1" and port.isdigit() and int(port) < 65536 else 0


def _make_node(args: argparse.Namespace, state: State) -> Node:
    pool = None
    if args.door in ("ext-authz", "ext-proc") and not args.grpc:
        args.grpc = f"unix:{state.root}/authz.sock"
    if args.grpc:
        address = parse_address(args.grpc)
        pool = Pool(state, address, args.workers, args.direction or "ingress", _group(), args.grace, _log_level())
    paths = [Path(path).absolute() for path in [*args.policies, *args.endpoints]]
    observer = Observing(state, args.flows, args.metrics, _log_level())
    children = Children(pool, _make_proxy(args, state), observer)
    return Node(state, paths, Compiling(_builder_arguments(args, state)), _make_datapath(args, state), children)


def _make_datapath(args: argparse.Namespace, state: State) -> Datapath:
    mode = Mode(args.datapath)
    reason = "" if mode is Mode.OFF else why_not()
    if unsteered := _unsteered(args):
        event(log, logging.WARNING, "the data path has no Envoy", reason=unsteered)
    if mode is not Mode.ON:  # with that the data path's process looks, and the node does not start
        for stranger in find_strangers(state, base()):
            event(log, logging.WARNING, "this node follows no policy in the kernel", reason=stranger)
    words = ["--log", _log_level(), *(f"--size={text}" for text in args.map_size)]
    words += ["--verbose"] if args.verbose else []
    return Datapath(state, mode, reason, _proxy_port(args), words)


def _log_level() -> str:
    return os.environ.get("IDMESH_LOG", "").upper() or "INFO"


def _builder_arguments(args: argparse.Namespace, state: State) -> list[str]:
    words = ["--state", str(state.root), "--log", _log_level()]
    for option, values in (("--policies", args.policies), ("--endpoints", args.endpoints), ("--set", args.pairs)):
        words += [f"{option}={value}" for value in values]
    for option, value in (("--settings", args.settings), ("--node", args.node)):
        words += [f"{option}={value}"] if value else []
    return words


def _group() -> int | None:
    """Group that may use the sockets: idmesh, if there is one and we may give it."""
    try:
        return grp.getgrnam(_GROUP).gr_gid if os.geteuid() == 0 else None
    except KeyError:
        return None


def _make_proxy(args: argparse.Namespace, state: State) -> Proxy:
    if not args.envoy and not args.door:
        config = _own_config(state)
        return Proxy(state, Path(), config, Admin(), MODULE, grace_s=args.grace, is_wanted=False)
    binary = find_envoy()
    config = args.envoy.absolute() if args.envoy else _write_config(args, state)
    words = ["--concurrency", str(args.concurrency)] if args.concurrency else []
    # Its start lists hundreds of extensions; whoever asks for a level of the log gets that.
    words += [] if any("log-level" in word or word == "-l" for word in args.envoy_arg) else _QUIET
    words += args.envoy_arg
    environment = binary.environment(MODULE)
    read = _read_config(config)
    proxy = Proxy(
        state,
        binary.path,
        config,
        admin_of(read),
        MODULE,
        arguments=words,
        environment=environment,
        grace_s=args.grace,
        cgroup=envoy_cgroup(state) if _is_steered(args) else None,
    )
    if proxy.alone() and (taken := taken_listeners(read)):
        raise Failure(f"{taken[0]}: another process listens there; Envoy would get only a part of the connections")
    return proxy


def _write_config(args: argparse.Namespace, state: State) -> Path:
    """By `idmesh envoy` in a process of its own: Envoy's messages are large, and needed once."""
    if _is_steered(args):
        words = ["--door", args.door, "--listen", f"127.0.0.1:{_proxy_port(args)}"]
        words += ["--steered", str(state.datapath_pins / "live")]
    else:
        words = ["--door", args.door, "--listen", args.listen, "--mode", args.mode or "http"]
        words += ["--direction", args.direction or "ingress"]
        words += [f"--upstream={upstream}" for upstream in args.upstream]
    words += tls_words(args)
    words += ["--state", str(state.root), "--admin", f"unix:{state.root}/envoy-admin.sock"]
    words += [f"--destination={args.destination}"] if args.destination else []
    if args.grpc:
        words += ["--grpc", parse_address(args.grpc).text, "--workers", str(args.workers)]
    made = subprocess.run([sys.executable, "-m", "ext_authz.cli", "envoy", *words], stdout=subprocess.PIPE, check=False)
    if made.returncode:
        raise Failure("Envoy's configuration could not be made (see above)")
    config = _own_config(state)
    write_atomic(config, made.stdout)
    return config


def _own_config(state: State) -> Path:
    return state.root / "envoy-config.json"


def _read_config(config: Path) -> Any:
    """A bootstrap as Envoy reads it; of YAML, which we need not understand, nothing."""
    try:
        return json.loads(config.read_bytes())
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(config.read_bytes())
        except yaml.YAMLError:
            return {}
