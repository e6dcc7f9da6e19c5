/* SPDX-License-Identifier: Apache-2.0 OR BSD-2-Clause */
/*
 * What BPF programs, their loader (native/datapath) and Python share: the layout of every map.
 *
 * Tables that belong to a revision exist twice, as slot 0 and slot 1 (maps NAME_0 and NAME_1). The loader fills the
 * slot that is not live, then writes idm_state.generation, whose lowest bit is the live slot: one word makes a
 * revision visible. A program reads that word once per packet and keeps to it. The loader touches a slot again only
 * after every program that could still read it has ended (a grace period).
 *
 * Policies come expanded: the loader asks the engine for the verdict of every peer identity and every span of ports,
 * so a program looks up and never weighs precedence.
 *
 * Host byte order unless the name ends in _be; addresses are in network order, IPv4 as ::ffff:a.b.c.d. No implicit
 * padding, no bit fields: C, BTF and Python compare every offset.
 */
#ifndef IDMESH_DATAPATH_H
#define IDMESH_DATAPATH_H

#ifndef __bpf__
#include <stdint.h>
#endif

#define IDM_LAYOUT 1 /* rises with every change here; a pin of another layout is never reused */
#define IDM_NO_INDEX 0xffffffffu

struct idm_address {
	uint8_t bytes[16];
};

/* ---- state: ARRAY, one row ---- */

struct idm_state {
	uint32_t generation; /* the word: rises by one with each publish, & 1 is the slot; 0: nothing yet, all is denied (203) */
	uint32_t layout;     /* IDM_LAYOUT */
	uint64_t domain;     /* identity domain of all numbers */
	uint64_t revision[2]; /* of each slot */
	uint32_t world4[2];   /* identity of an IPv4 address that no table knows */
	uint32_t world6[2];
	uint32_t closed[2];   /* 1: the snapshot is closed, everything is denied (203) */
	uint32_t reserved[2];
};

/* ---- config: ARRAY, one row; not bound to a revision ---- */

struct idm_config {
	uint64_t envoy_cgroup;   /* id of the cgroup whose sockets may carry our marks; 0: nobody */
	uint16_t proxy_port;     /* Envoy's transparent listener on 127.0.0.1 and ::1; 0: no Envoy, redirects are dropped (180) */
	uint16_t proxy_port6;    /* the same for IPv6; 0: as proxy_port */
	uint32_t flags;          /* IDM_CONFIG_* */
	uint32_t host_identity;  /* 1 */
	uint32_t reserved[3];
};
#define IDM_CONFIG_EVENTS_ALLOWED 1u /* an event for every allowed connection, not only for what is dropped */
#define IDM_CONFIG_PEER_REDIRECT 2u  /* hand packets of local pairs straight to the other namespace */

/* Our bits of skb->mark. The low nibble and all above 0xf00 are not ours, but for the token of an upstream packet. */
#define IDM_MARK_MASK 0xf00u
#define IDM_MARK_TO_PROXY 0x200u   /* steered: routed to the host's own stack (table 2004) */
#define IDM_MARK_WORKLOAD 0x600u   /* steered sockets of workloads without a namespace: routed as IDM_MARK_TO_PROXY; */
                                   /* also on packets that such a workload's programs let pass to an attached veth */
#define IDM_MARK_FROM_PROXY 0xa00u /* sent by Envoy for a client; the token says which */
/* A token fills the bits that are not in IDM_MARK_MASK: low 8 bits, then 16 bits from bit 12 on. 0: none. */
#define IDM_MARK_TOKEN(mark) (((mark) & 0xffu) | (((mark) >> 4) & 0xffff00u))
#define IDM_TOKEN_MARK(token) (IDM_MARK_FROM_PROXY | ((token) & 0xffu) | (((token) & 0xffff00u) << 4))
#define IDM_TOKEN_MAX 0xffffffu

/* ---- endpoints_0, endpoints_1: HASH, struct idm_address to this. Every address of its own (/32, /128). ---- */

struct idm_endpoint_row {
	uint32_t identity;
	uint32_t endpoint; /* index in the snapshot, or IDM_NO_INDEX (a node's address) */
	uint32_t policy;   /* kernel policy number, or IDM_NO_INDEX: not enforced on this host */
	uint32_t flags;    /* IDM_ENDPOINT_ROW_* */
	uint32_t ifindex;  /* host side of its veth, 0: not attached here */
	uint32_t reserved;
};
#define IDM_ENDPOINT_ROW_LOCAL 1u /* policy is enforced on this host: without a policy number it is denied (165) */

/* ---- prefixes_0, prefixes_1: LPM_TRIE. CIDRs only; IPv4 prefixes have 96 more bits. ---- */

struct idm_prefix_key {
	uint32_t bits; /* 0 to 128 */
	struct idm_address address;
};
struct idm_prefix_row {
	uint32_t identity;
};

/*
 * ---- sides_0, sides_1: ARRAY by policy * 2 + direction (idm_direction) ----
 * A kernel policy is a policy of the snapshot with the port names and audit flag of its endpoint resolved.
 */

/* Spans of one list: spans[first] to spans[first + count - 1], rising by (protocol, first_port), disjoint. */
struct idm_ports {
	uint32_t first;
	uint32_t count;
};

struct idm_side_row {
	uint32_t flags;        /* IDM_SIDE_ROW_*; 0: an unused row, denied (165) */
	uint8_t miss_verdict;  /* where no span covers the port: idm_verdict_code */
	uint8_t miss_drop;     /* and its drop reason (133) */
	uint8_t reserved[2];
	struct idm_ports any;  /* for peers without a row in peers_N */
};
#define IDM_SIDE_ROW_USED 1u
#define IDM_SIDE_ROW_OPEN 2u     /* not enforced: everything passes, nothing else is read */
#define IDM_SIDE_ROW_ISOLATED 4u /* everything is denied (133) */

/* ---- peers_0, peers_1: HASH. Peers that some selector of the side selects; entries for any peer are folded in. ---- */

struct idm_peer_key {
	uint32_t side; /* policy * 2 + direction */
	uint32_t identity;
};
/* Value: struct idm_ports. */

/* ---- spans: ARRAY, shared by both slots; a row is written again only after no slot has used it for a grace period ---- */

struct idm_span_row {
	uint16_t first_port; /* ICMP: the type */
	uint16_t last_port;
	uint8_t protocol;    /* 0: every protocol that no span of the list names; then ports 0 to 65535 */
	uint8_t verdict;     /* idm_verdict_code: FORWARDED, DROPPED, AUDIT, REDIRECTED */
	uint8_t drop_reason; /* DROPPED, AUDIT */
	uint8_t l7;          /* idm_l7, REDIRECTED */
	uint32_t entry;      /* in the snapshot, or IDM_NO_INDEX */
	uint8_t auth;        /* idm_auth; what demands more than UNSET or DISABLED comes as DROPPED 189 */
	uint8_t match_type;
	uint8_t reserved[2];
};

/*
 * ---- connections: LRU_HASH ----
 * Both directions of a connection share a row: the end with the lower (address, port) stands first. Leg 1 is
 * Envoy's own connection to the server with the client's address; the two legs may have equal tuples.
 * ICMP echo: both ports are the identifier. What else has no ports: 0.
 */

struct idm_connection_key {
	struct idm_address low;
	struct idm_address high;
	uint16_t low_port;
	uint16_t high_port;
	uint8_t protocol;
	uint8_t leg; /* IDM_LEG_* */
	uint8_t reserved[2];
};
#define IDM_LEG_CLIENT 0
#define IDM_LEG_PROXY 1

/* Source is who opened the connection. Judged again when generation is not the live one. */
struct idm_connection {
	uint32_t generation; /* that judged it last */
	uint32_t seen_s;     /* CLOCK_BOOTTIME seconds of the last packet */
	uint64_t revision;   /* of that generation: what the module asks for at accept */
	uint32_t source_identity;
	uint32_t destination_identity;
	uint32_t source_endpoint; /* index in that revision, or IDM_NO_INDEX */
	uint32_t destination_endpoint;
	uint32_t source_ifindex; /* host side of the attached veth, or 0 */
	uint32_t destination_ifindex;
	uint32_t egress_entry; /* winning entries, or IDM_NO_INDEX */
	uint32_t ingress_entry;
	uint32_t token;  /* steered: for the mark of Envoy's upstream sockets */
	uint8_t verdict; /* idm_verdict_code: FORWARDED, AUDIT, REDIRECTED (steered into Envoy); DROPPED: denied since, each packet is judged again */
	uint8_t flags;   /* IDM_CONNECTION_* */
	uint8_t l7;      /* idm_l7 of the redirect */
	uint8_t tcp;     /* IDM_TCP_* seen */
	uint64_t opened_ns; /* CLOCK_BOOTTIME */
	uint64_t packets;   /* forward and back; approximate under load */
};
#define IDM_CONNECTION_SOURCE_HIGH 1u /* the high end of the key opened it */
#define IDM_CONNECTION_EGRESS 2u      /* egress of the source was judged by us (it is local) */
#define IDM_CONNECTION_INGRESS 4u     /* ingress of the destination was judged by us (it is local) */
#define IDM_CONNECTION_L7_EGRESS 8u   /* the redirect came from the egress side */
#define IDM_CONNECTION_L7_INGRESS 16u
#define IDM_CONNECTION_HOST 32u       /* the source is a process of this host */
#define IDM_CONNECTION_CGROUP 64u     /* and a workload without a namespace: source_identity says which, not its address */
#define IDM_TCP_SYN 1u
#define IDM_TCP_ANSWERED 2u
#define IDM_TCP_FIN_SOURCE 4u
#define IDM_TCP_FIN_DESTINATION 8u
#define IDM_TCP_RST 16u

/* Seconds without a packet after which a row no longer stands for its flow. */
#define IDM_LIFE_SYN_S 60
#define IDM_LIFE_TCP_S 21600
#define IDM_LIFE_CLOSING_S 10
#define IDM_LIFE_OTHER_S 60

/*
 * ---- tokens: LRU_HASH idm_token_key to uint32_t; grants: LRU_HASH uint32_t token to idm_grant ----
 * tokens_outside and grants_outside are the same for clients that are no endpoints and come from outside: there may be
 * any number of them, and what they use up is theirs alone. Their tokens have IDM_TOKEN_OUTSIDE.
 */
#define IDM_TOKEN_OUTSIDE 0x800000u

/* One token per client, so that Envoy may share upstream connections among connections of one client. */
struct idm_token_key {
	struct idm_address source;
	uint32_t identity;
	uint32_t endpoint;
};
struct idm_grant {
	struct idm_address source; /* of a workload without a namespace: where endpoints_N knows it, whatever it sends from */
	uint32_t identity;
	uint32_t endpoint;
	uint32_t generation; /* when it was last given */
	uint32_t flags;      /* IDM_CONNECTION_HOST, IDM_CONNECTION_CGROUP: as in the rows of the client's connections */
};

/*
 * ---- listeners: SOCKMAP, 0: IPv4, 1: IPv6. Envoy's transparent listeners, put in by the program at Envoy's cgroup when
 * they start to listen; gone with the socket, and then what would be steered is refused ----
 */

/* ---- attachments: HASH by ifindex of the host side; an interface without a row lets nothing pass ---- */

struct idm_attachment {
	uint8_t mac[6]; /* the workload's own; all 0: any */
	uint8_t reserved[2];
	uint32_t peer_ifindex; /* the workload's side, in its namespace */
	uint32_t flags;
};

/* ---- locals: HASH struct idm_address to uint32_t: the host's own addresses (identity host as a destination) ---- */

/* ---- fragments: LRU_HASH to uint32_t (source port << 16 | destination port) ---- */

struct idm_fragment_key {
	struct idm_address source;
	struct idm_address destination;
	uint32_t id_be;
	uint8_t protocol;
	uint8_t reserved[3];
};

/* ---- services: HASH; backends: ARRAY; affinity: LRU_HASH; translations: LRU_HASH ---- */

struct idm_service_key {
	struct idm_address address; /* VIP; :: or ::ffff:0.0.0.0: NodePort on any address of the host of that version */
	uint16_t port;
	uint8_t protocol;
	uint8_t reserved;
};
struct idm_service {
	uint32_t first_backend; /* in backends */
	uint32_t backend_count; /* 0: refused */
	uint32_t affinity_s;    /* ClientIP affinity, 0: none */
	uint32_t id;
};
struct idm_backend {
	struct idm_address address;
	uint16_t port;
	uint8_t protocol;
	uint8_t reserved;
	uint32_t service; /* whose row this is: idm_service.id; a row of another service is never used */
};
struct idm_affinity_key {
	struct idm_address client; /* cookie of the network namespace, then idm_workload.endpoint or 0 (8 bytes each) */
	uint32_t service;
};
struct idm_affinity {
	struct idm_backend backend;
	uint32_t seen_s;
};
struct idm_translation_key { /* an unconnected socket may talk to backends of many services */
	uint64_t cookie; /* of the socket */
	struct idm_address backend;
	uint16_t port;
	uint16_t reserved;
	uint32_t reserved2;
};
struct idm_translation { /* what the socket asked for when it was given this backend */
	struct idm_address address;
	uint16_t port;
	uint16_t reserved;
	uint32_t service;
};

/* ---- workloads: HASH cgroup id to this: workloads without a namespace; children inherit ---- */

struct idm_workload {
	uint32_t identity; /* must be what endpoints_N says of its address, else nothing passes */
	uint32_t endpoint; /* stable number of the attachment, not an index */
	struct idm_address address4; /* where endpoints_N knows it, IPv4 or all 0; also what it sends from */
	struct idm_address address6;
	uint32_t flags; /* IDM_WORKLOAD_* */
	uint32_t reserved;
};
#define IDM_WORKLOAD_SHARED 1u /* sends from the host's addresses; its own only stand for it, nobody routes there */

/* ---- counters: PERCPU_ARRAY by drop reason * 2 + direction; reason 0: passed ---- */

struct idm_counter {
	uint64_t packets;
	uint64_t bytes;
};
#define IDM_COUNTERS 512

/* ---- events: RINGBUF ---- */

struct idm_event {
	uint64_t time_ns; /* CLOCK_BOOTTIME */
	uint64_t revision;
	struct idm_address source;
	struct idm_address destination;
	uint32_t source_identity;
	uint32_t destination_identity;
	uint32_t source_endpoint;
	uint32_t destination_endpoint;
	uint32_t egress_entry;
	uint32_t ingress_entry;
	uint32_t ifindex;
	uint16_t source_port;
	uint16_t destination_port;
	uint8_t protocol;
	uint8_t verdict;
	uint8_t drop_reason;
	uint8_t direction; /* idm_direction of the verdict that counts */
	uint8_t type;      /* IDM_EVENT_* */
	uint8_t tcp_flags;
	uint8_t l7;
	uint8_t match_type;
	uint32_t size; /* bytes of the packet */
	uint32_t hook; /* IDM_HOOK_* */
};
#define IDM_EVENT_VERDICT 1 /* first packet of a connection, or judged again with another answer */
#define IDM_EVENT_DROP 2    /* a packet that is no connection's: spoofed, malformed, a foreign ethertype */
#define IDM_HOOK_FROM_WORKLOAD 1
#define IDM_HOOK_TO_WORKLOAD 2
#define IDM_HOOK_CGROUP 3
#define IDM_HOOK_HOST 4

/* Events that found no room: PERCPU_ARRAY losses, one row of uint64_t. */

/* Drop reasons that only the kernel gives (Hubble's numbers). */
enum idm_packet_drop {
	IDM_PACKET_INVALID_SOURCE_MAC = 130,
	IDM_PACKET_INVALID_SOURCE_IP = 132,
	IDM_PACKET_INVALID = 134,
	IDM_PACKET_UNKNOWN_L3 = 139,
	IDM_PACKET_UNKNOWN_L4 = 142,
	IDM_PACKET_MAP_FULL = 155,
	IDM_PACKET_FRAGMENT_NOT_FOUND = 175,
};

#endif
