// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Service addresses and NodePorts of workloads whose cgroup is known: put into a backend's where a socket names its
 * peer (connect, sendmsg), and back where it is told its peer (getpeername, recvmsg).
 *
 * Attached to the workload's own cgroup and nowhere above it, so no other traffic of the host is ever seen here. What
 * is translated is judged later, as packets to the backend: these programs open nothing. A Service without backends
 * refuses the connection, as a host where nobody listens does.
 *
 * A workload in a network namespace whose cgroup is not known gets no translation. If it has a policy of egress, its
 * packets to a Service's address are refused where they are judged (decide.h): a NAT of the host might lead them on.
 */
#include "maps.h"
#include "socket.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return socket_translate4(ctx, 0);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return socket_translate6(ctx, 0);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return socket_translate4(ctx, 0);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return socket_translate6(ctx, 0);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return socket_restore4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return socket_restore6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return socket_restore4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return socket_restore6(ctx);
}
