# SPDX-License-Identifier: Apache-2.0
"""`idmesh envoy`: print a complete Envoy bootstrap for one door."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ext_authz.cli import Failure
from ext_authz.envoy_binary import MODULE
from ext_authz.state import default_state
from ext_authz.xds.setup import (
    Direction,
    Door,
    Evidence,
    Mode,
    Setup,
    SetupError,
    Steering,
    Target,
    Tls,
    UpstreamHttp,
    parse_target,
)

_EPILOG = """\
Whose policy judges what comes in: by default the upstream's, found by its address, at its port. If the upstream is
127.0.0.1 or ::1 and the listener is reachable from elsewhere, it is the address the client connected to, at the
upstream's port. --destination says otherwise: local, ADDRESS[:PORT] or NAMESPACE/NAME[:PORT].

--steered DIR makes the transparent listener: the datapath steers connections to 127.0.0.1 and ::1 at the port of
--listen, whatever their destination, and its maps in DIR say whose they are. What they are judged by stands there too:
requests where a policy has HTTP rules, connections otherwise, TLS by its server name. Envoy then needs CAP_NET_ADMIN,
CAP_BPF and a cgroup of its own, which the datapath is told.

Envoy 1.38 needs ENVOY_DYNAMIC_MODULES_SEARCH_PATH set to the module's directory; newer ones take its path from
the bootstrap.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "envoy",
        help="print a complete Envoy bootstrap",
        description="Print a complete Envoy bootstrap (JSON) for one door.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_where(parser)
    _add_door(parser)
    _add_listener(parser)
    add_tls_arguments(parser)
    parser.set_defaults(run=run)


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--door", default="module", choices=[*map(str, Door)], help="who decides (module)")
    parser.add_argument("--listen", required=True, metavar="ADDR", help="HOST:PORT to listen on")
    parser.add_argument(
        "--upstream", default=[], action="append", metavar="ADDR", help="HOST:PORT behind it; may be repeated"
    )
    parser.add_argument(
        "--steered", type=Path, metavar="DIR", help="connections come from this host's datapath, with its maps in DIR"
    )
    parser.add_argument("--mode", default="http", choices=[*map(str, Mode)], help="http, or tcp for L3/L4 only")
    parser.add_argument("--direction", default="ingress", choices=[*map(str, Direction)])
    parser.add_argument("--destination", default="", metavar="WHOSE", help="whose policy judges (see below)")
    parser.add_argument("--admin", metavar="ADDR", help="HOST:PORT or unix:PATH of Envoy's admin interface")


def _add_door(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory (module)")
    parser.add_argument("--module", type=Path, default=MODULE, metavar="FILE", help="libidmesh_envoy.so (module)")
    parser.add_argument("--grpc", default="", metavar="ADDR", help="unix:PATH or HOST:PORT as for run (ext-*)")
    parser.add_argument("--workers", type=int, default=1, help="as for run (ext-*)")
    parser.add_argument(
        "--listener-filter", action="store_true", help="the module's listener filter says who connects (--state)"
    )
    parser.add_argument("--observe", action="store_true", help="look on and deny nothing (ext-proc)")
    parser.add_argument(
        "--flow-ring-bytes", type=int, metavar="N", help="each Envoy worker's ring of flow records; 0: none (module)"
    )
    parser.add_argument("--second-point", action="store_true", help="judge again on the chosen upstream host (module)")
    parser.add_argument("--body", default="", help="what a denied client reads (module)")
    parser.add_argument(
        "--metadata",
        default="",
        choices=["", "all", "denied", "none"],
        metavar="WHICH",
        help="decisions in metadata: all, denied or none",
    )


def _add_listener(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--use-remote-address", default=True, action=argparse.BooleanOptionalAction, help="for X-Forwarded-For"
    )
    parser.add_argument("--trusted-hops", type=int, default=0, help="proxies whose X-Forwarded-For Envoy logs")
    parser.add_argument("--upstream-http", default="http1", choices=[*map(str, UpstreamHttp)])
    parser.add_argument("--proxy-protocol-from", action="append", default=[], metavar="CIDR")
    parser.add_argument("--original-dst", action="store_true", help="connections are redirected here by the kernel")
    parser.add_argument("--sni", action="store_true", help="read the server name of TLS connections")
    parser.add_argument("--access-log", default="", metavar="FILE", help="JSON access log with the decisions")


def add_tls_arguments(parser: argparse._ActionsContainer) -> None:
    """The listener's TLS, and what may say who its clients are; `tls_words` gives them back."""
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="the listener's certificate chain (PEM)")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="CA that signs the clients' certificates (PEM)")
    parser.add_argument(
        "--trust-domain", default="", metavar="NAME", help="SPIFFE trust domain whose certificates say who connects"
    )
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        choices=[*map(str, Evidence)],
        help="evidence of the peer that must be there; may be repeated",
    )
    parser.add_argument(
        "--ignore-address",
        action="store_true",
        help="clients come through others' addresses: only certificates tell who they are",
    )


def tls_words(args: argparse.Namespace) -> list[str]:
    """The arguments of add_tls_arguments as they were given."""
    single = {"--tls-cert": args.tls_cert, "--tls-key": args.tls_key, "--tls-ca": args.tls_ca}
    words = [f"{option}={value}" for option, value in {**single, "--trust-domain": args.trust_domain}.items() if value]
    return words + [f"--require={value}" for value in args.require] + ["--ignore-address"] * args.ignore_address


def run(args: argparse.Namespace) -> int:
    try:
        setup = _setup(args)
    except SetupError as error:
        raise Failure(str(error)) from error
    from ext_authz.xds.bootstrap import render  # the messages take half a second to import

    sys.stdout.write(render(setup))
    return 0


def _setup(args: argparse.Namespace) -> Setup:
    door = Door(args.door)
    module = args.module.resolve()
    if (door in (Door.MODULE, Door.EMPTY) or args.listener_filter) and not module.exists():
        raise SetupError(f"{module}: not built; run make setup")
    return Setup(
        door=door,
        listen=parse_target(args.listen),
        upstreams=tuple(map(parse_target, args.upstream)),
        mode=Mode(args.mode),
        direction=Direction(args.direction),
        destination=args.destination,
        state=(args.state or default_state()).absolute(),
        module=module,
        authz=_workers(args.grpc, args.workers) if args.grpc else (),
        admin=parse_target(args.admin) if args.admin else None,
        listener_filter=args.listener_filter,
        observe=args.observe,
        use_remote_address=args.use_remote_address,
        trusted_hops=args.trusted_hops,
        upstream_http=UpstreamHttp(args.upstream_http),
        second_point=args.second_point,
        proxy_protocol_from=tuple(args.proxy_protocol_from),
        original_dst=args.original_dst,
        sni=args.sni,
        body=args.body,
        metadata=args.metadata,
        access_log=args.access_log,
        flow_ring_bytes=args.flow_ring_bytes,
        tls=_tls(args),
        trust_domain=args.trust_domain,
        require=tuple(map(Evidence, args.require)),
        address_ignored=args.ignore_address,
        steering=Steering(args.steered.absolute(), ip6=_has_ip6()) if args.steered else None,
    )


def _has_ip6() -> bool:
    return Path("/proc/net/if_inet6").exists()


def _tls(args: argparse.Namespace) -> Tls | None:
    if bool(args.tls_cert) != bool(args.tls_key):
        raise SetupError("--tls-cert and --tls-key belong together")
    if not args.tls_cert:
        if args.tls_ca:
            raise SetupError("--tls-ca needs --tls-cert and --tls-key")
        return None
    return Tls(args.tls_cert.absolute(), args.tls_key.absolute(), args.tls_ca.absolute() if args.tls_ca else None)


def _workers(grpc: str, count: int) -> tuple[Target, ...]:
    """Where `idmesh run --grpc --workers` listens."""
    from ext_authz.service.listen import AddressError, parse_address

    try:
        first = parse_address(grpc)
        return tuple(parse_target(first.worker(index, count).text) for index in range(count))
    except AddressError as error:
        raise SetupError(str(error)) from error
