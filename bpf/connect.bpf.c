// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Service addresses and NodePorts of workloads whose cgroup is known: put into a backend's where a socket names its
 * peer (connect, sendmsg), and back where it is told its peer (getpeername, recvmsg).
 *
 * Attached to the workload's own cgroup and nowhere above it, so no other traffic of the host is ever seen here. What
 * is translated is judged later, as packets to the backend: these programs open nothing. A Service without backends
 * refuses the connection, as a host where nobody listens does.
 *
 * A workload in a network namespace whose cgroup is not known gets no translation: its packets to a Service's address
 * are judged as packets to that address, which no endpoint has (world), and never leave for a backend unjudged.
 */
#include "maps.h"
#include "socket.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline int refuse(void)
{
	bpf_set_retval(SOCKET_REFUSED);
	return SOCKET_STOP;
}

static __always_inline int translate4(struct bpf_sock_addr *ctx)
{
	struct idm_service_key asked;
	struct idm_backend given;
	enum service_answer answer;

	socket_peer4(ctx, &asked);
	answer = socket_translate(ctx, &asked, 0, &given);
	if (answer == SERVICE_REFUSED)
		return refuse();
	if (answer == SERVICE_GIVEN)
		socket_name4(ctx, &given.address, given.port);
	return SOCKET_PROCEED;
}

static __always_inline int translate6(struct bpf_sock_addr *ctx)
{
	struct idm_service_key asked;
	struct idm_backend given;
	enum service_answer answer;

	socket_peer6(ctx, &asked);
	answer = socket_translate(ctx, &asked, 0, &given);
	if (answer == SERVICE_REFUSED)
		return refuse();
	if (answer == SERVICE_GIVEN)
		socket_name6(ctx, &given.address, given.port);
	return SOCKET_PROCEED;
}

static __always_inline int restore4(struct bpf_sock_addr *ctx)
{
	const struct idm_translation *row;
	struct idm_service_key peer;

	socket_peer4(ctx, &peer);
	row = service_asked(bpf_get_socket_cookie(ctx), &peer.address, peer.port);
	if (row)
		socket_name4(ctx, &row->address, row->port);
	return SOCKET_PROCEED;
}

static __always_inline int restore6(struct bpf_sock_addr *ctx)
{
	const struct idm_translation *row;
	struct idm_service_key peer;

	socket_peer6(ctx, &peer);
	row = service_asked(bpf_get_socket_cookie(ctx), &peer.address, peer.port);
	if (row)
		socket_name6(ctx, &row->address, row->port);
	return SOCKET_PROCEED;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return translate4(ctx);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return translate6(ctx);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return translate4(ctx);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return translate6(ctx);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return restore4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx);
}
