/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Envoy's sockets: which are its listeners, for whom it connects to servers, and that nobody else sends as it does.
 *
 *   envoy_sockets  (sock_ops, Envoy's cgroup) keeps the transparent listeners where sk_lookup.bpf.c finds them, and
 *                  writes the row of leg 1 when Envoy connects with a token: for the client of that token alone.
 *   keep_marks     (setsockopt, a cgroup above all) refuses our marks to everybody else. CAP_NET_RAW would be enough.
 *                  It only says so early: the kernel does not ask it of 32-bit programs. keep_packets is the guard.
 *   keep_packets   (egress, the same cgroup) drops packets that carry our marks all the same (a mark can come with a
 *                  message), and connections that Envoy opens in a client's name without its row.
 */
#include "decide.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FAMILY_IP4 2
#define FAMILY_IP6 10
#define SOCKET_STREAM 1 /* SOCK_STREAM */
#define SOCKET_LEVEL 1  /* SOL_SOCKET */
#define SOCKET_MARK 36  /* SO_MARK */
#define PAGE_BYTES 4096 /* of options longer than a page programs see a part, and must say that they left it alone */
#define WORKLOAD_DEPTH 16 /* levels of cgroups, as in workload.h */
#define PASS 1
#define REFUSE 0

static const uint32_t only; // the one row of arrays

static __always_inline bool is_ours(uint32_t mark)
{
	mark &= IDM_MARK_MASK;
	return mark == IDM_MARK_TO_PROXY || mark == IDM_MARK_FROM_PROXY || mark == IDM_MARK_WORKLOAD;
}

static __always_inline bool is_envoy(uint64_t cgroup)
{
	uint32_t row = only;
	const struct idm_config *settings = bpf_map_lookup_elem(&config, &row);

	return settings && settings->envoy_cgroup && settings->envoy_cgroup == cgroup;
}

// ---- listeners ----

static __always_inline bool ends_of(const struct bpf_sock_ops *ctx, struct steer_end *local, struct steer_end *server)
{
	local->port = ctx->local_port;
	server->port = bpf_ntohl(ctx->remote_port);
	if (ctx->family == FAMILY_IP4) {
		local->address = steer_mapped(ctx->local_ip4);
		server->address = steer_mapped(ctx->remote_ip4);
		return true;
	}
	if (ctx->family != FAMILY_IP6)
		return false;
	uint32_t mine[4] = STEER_WORDS(ctx, local_ip6), others[4] = STEER_WORDS(ctx, remote_ip6);

	__builtin_memcpy(&local->address, mine, sizeof(mine));
	__builtin_memcpy(&server->address, others, sizeof(others));
	return true;
}

static __always_inline bool is_loopback(const struct idm_address *address, bool ip4)
{
	struct idm_address wanted = {.bytes = {[15] = 1}};

	if (ip4)
		wanted = steer_mapped(bpf_htonl(0x7f000001));
	return steer_same_address(address, &wanted);
}

static __noinline int keep_listener(struct bpf_sock_ops *ctx)
{
	struct steer_end local, nobody;
	bool ip4 = ctx->family == FAMILY_IP4;
	uint32_t row = only, slot = !ip4;
	const struct idm_config *settings = bpf_map_lookup_elem(&config, &row);
	uint32_t port;

	if (!settings || !ends_of(ctx, &local, &nobody))
		return 0;
	port = ip4 || !settings->proxy_port6 ? settings->proxy_port : settings->proxy_port6;
	if (!port || local.port != port || !is_loopback(&local.address, ip4))
		return 0;
	// Each worker has a listener of its own; whichever stands here, the kernel spreads over all of them.
	return bpf_sock_map_update(ctx, &listeners, &slot, BPF_ANY);
}

// ---- leg 1 ----

static __always_inline void count(uint32_t reason)
{
	uint32_t index = reason * 2 + IDM_EGRESS;
	struct idm_counter *counter = bpf_map_lookup_elem(&counters, &index);

	// The table holds every reason; the verifier wants to see it asked.
	if (counter)
		counter->packets++;
}

// The packet that the connection begins with. A frame of its own: the stack is small.
static __noinline int describe(struct bpf_sock_ops *ctx, struct packet *ret)
{
	struct steer_end local, server;

	if (!ret || !ends_of(ctx, &local, &server))
		return 0;
	ret->source = local.address;
	ret->destination = server.address;
	ret->source_port = local.port;
	ret->destination_port = server.port;
	ret->protocol = IPPROTO_TCP;
	ret->kind = packet_is_mapped(&server.address) ? PACKET_IP4 : PACKET_IP6;
	ret->flags = PACKET_OPENS;
	ret->tcp_flags = TCP_SYN;
	return 1;
}

/*
 * Judged by the revision in force, which Envoy need not have yet. Without a row the SYN is dropped (has_leg), so what
 * is denied here fails at once. One that stands is another connection's, which had the same ports.
 */
static __noinline int open_leg(struct bpf_sock_ops *ctx, uint32_t mark)
{
	struct flow flow = {.now_ns = bpf_ktime_get_boot_ns()};
	int reason;

	if (!describe(ctx, &flow.packet))
		return IDM_DROP_NOT_READY;
	track_key(&flow, IDM_LEG_PROXY);
	reason = lookup_live(&flow.live) ? decide_granted(&flow, IDM_MARK_TOKEN(mark)) : IDM_DROP_NOT_READY;
	if (!reason)
		reason = track_open(&flow);
	if (!reason)
		return 0;
	bpf_map_delete_elem(&connections, &flow.key);
	count(reason);
	return reason;
}

// ---- programs ----

SEC("sockops")
int envoy_sockets(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *socket = ctx->sk;

	if (!socket)
		return PASS;
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		keep_listener(ctx);
	else if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB && (socket->mark & IDM_MARK_MASK) == IDM_MARK_FROM_PROXY)
		open_leg(ctx, socket->mark);
	return PASS;
}

SEC("cgroup/setsockopt")
int keep_marks(struct bpf_sockopt *ctx)
{
	uint32_t *mark = ctx->optval;
	bool is_long = ctx->optlen > PAGE_BYTES;

	if (ctx->level != SOCKET_LEVEL || ctx->optname != SOCKET_MARK) {
		if (is_long)
			ctx->optlen = 0;
		return PASS;
	}
	// Of a long one the kernel reads the caller's memory again, where another thread may have put something else.
	if (is_long)
		return REFUSE;
	if ((void *)(mark + 1) > ctx->optval_end)
		return PASS;
	return is_ours(*mark) && !is_envoy(bpf_get_current_cgroup_id()) ? REFUSE : PASS;
}

struct segment {
	struct steer_end from;
	struct steer_end to;
	bool opens; // the first of a connection
};

// False: not TCP, or none that a socket of this host would send.
static __always_inline bool read_segment(struct __sk_buff *skb, struct segment *ret)
{
	struct tcphdr tcp;
	uint32_t offset;

	if (skb->protocol == bpf_htons(0x0800)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP)
			return false;
		ret->from.address = steer_mapped(ip.saddr);
		ret->to.address = steer_mapped(ip.daddr);
		offset = ip.ihl * 4;
	} else {
		struct ipv6hdr ip;

		if (skb->protocol != bpf_htons(0x86dd) || bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) ||
		    ip.nexthdr != IPPROTO_TCP)
			return false;
		__builtin_memcpy(&ret->from.address, &ip.saddr, sizeof(ret->from.address));
		__builtin_memcpy(&ret->to.address, &ip.daddr, sizeof(ret->to.address));
		offset = sizeof(ip);
	}
	if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
		return false;
	ret->from.port = bpf_ntohs(tcp.source);
	ret->to.port = bpf_ntohs(tcp.dest);
	ret->opens = tcp.syn && !tcp.ack;
	return true;
}

static __always_inline bool has_leg(const struct segment *segment, uint32_t token)
{
	struct idm_connection_key key;
	const struct idm_connection *leg;

	steer_key(&segment->from, &segment->to, IDM_LEG_PROXY, &key);
	leg = bpf_map_lookup_elem(&connections, &key);
	return leg && leg->token == token;
}

static __always_inline bool is_own(const struct idm_address *address)
{
	bool loopback4 = packet_is_mapped(address) && address->bytes[12] == 127;

	return loopback4 || is_loopback(address, false) || bpf_map_lookup_elem(&locals, address);
}

// From a TCP socket that sends no first segment any more, or none ever (a listener's answers). Raw sockets may have the
// same protocol and state, and send what they like.
static __always_inline bool is_under_way(struct __sk_buff *skb)
{
	struct bpf_sock *socket = skb->sk;

	socket = socket ? bpf_sk_fullsock(socket) : NULL;
	return socket && socket->type == SOCKET_STREAM && socket->protocol == IPPROTO_TCP &&
	       socket->state != BPF_TCP_SYN_SENT && socket->state != BPF_TCP_CLOSE;
}

// Connections under way are judged packet by packet where the server is; here only that none begins unknown.
static __always_inline int judge_envoy(struct __sk_buff *skb)
{
	uint32_t mark = skb->mark;
	struct segment segment;
	bool marked = (mark & IDM_MARK_MASK) == IDM_MARK_FROM_PROXY;

	if (is_under_way(skb))
		return PASS;
	if (!read_segment(skb, &segment))
		return marked ? REFUSE : PASS;
	if (!segment.opens)
		return PASS;
	if (marked)
		return has_leg(&segment, IDM_MARK_TOKEN(mark)) ? PASS : REFUSE;
	// In a client's name, but without saying so: the server's side would take it for the host's.
	return is_own(&segment.from.address) ? PASS : REFUSE;
}

static __always_inline bool is_workload(struct __sk_buff *skb)
{
	for (int level = 1; level <= WORKLOAD_DEPTH; level++) {
		uint64_t cgroup = bpf_skb_ancestor_cgroup_id(skb, level);

		if (cgroup && bpf_map_lookup_elem(&workloads, &cgroup))
			return true;
	}
	return false;
}

SEC("cgroup_skb/egress")
int keep_packets(struct __sk_buff *skb)
{
	// What nearly every packet is, of Envoy or of anybody.
	if (!is_ours(skb->mark) && is_under_way(skb))
		return PASS;
	if (is_envoy(bpf_skb_cgroup_id(skb)))
		return judge_envoy(skb);
	// A program at the workload's own cgroup, which ran before this one, sees to it that its mark is deserved.
	if ((skb->mark & IDM_MARK_MASK) == IDM_MARK_WORKLOAD)
		return is_workload(skb) ? PASS : REFUSE;
	return is_ours(skb->mark) ? REFUSE : PASS;
}
