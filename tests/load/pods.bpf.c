/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What pod to pod is compared with: redirect_peer with nothing but a lookup of where the destination is, and a short
 * cut from socket to socket past both network stacks. table_pods.py fills the map and hangs the programs up.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, uint32_t); // IPv4 address
	__type(value, uint32_t);
	__uint(max_entries, 16);
} places SEC(".maps");

struct pair {
	uint32_t local_be;
	uint32_t remote_be;
	uint32_t local_port;
	uint32_t remote_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__type(key, struct pair);
	__type(value, uint64_t);
	__uint(max_entries, 65536);
} sockets SEC(".maps");

#define PASS (-1) /* TCX_NEXT */
#define IP4 0x0800
#define ACTIVE 4 /* BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB */
#define PASSIVE 5

SEC("tc")
int redirect_bare(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	uint32_t *ifindex, address;

	if (skb->protocol != bpf_htons(IP4) || (void *)(ip + 1) > end)
		return PASS;
	address = ip->daddr;
	ifindex = bpf_map_lookup_elem(&places, &address);
	return ifindex ? bpf_redirect_peer(*ifindex, 0) : PASS;
}

SEC("sockops")
int remember_socket(struct bpf_sock_ops *ops)
{
	struct pair pair = {
		.local_be = ops->local_ip4,
		.remote_be = ops->remote_ip4,
		.local_port = ops->local_port,
		.remote_port = bpf_ntohl(ops->remote_port),
	};

	if (ops->op == ACTIVE || ops->op == PASSIVE)
		bpf_sock_hash_update(ops, &sockets, &pair, BPF_ANY);
	return 1;
}

SEC("sk_msg")
int cut_short(struct sk_msg_md *message)
{
	struct pair pair = {
		.local_be = message->remote_ip4,
		.remote_be = message->local_ip4,
		.local_port = bpf_ntohl(message->remote_port),
		.remote_port = message->local_port,
	};

	// Without its other end here, over the network as ever.
	bpf_msg_redirect_hash(message, &sockets, &pair, BPF_F_INGRESS);
	return SK_PASS;
}
