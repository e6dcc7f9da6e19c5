/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The snapshot: the one file every reader decides from.
 *
 *   struct idm_header
 *   struct idm_table_ref[table_count]      directory, covered by header.crc32
 *   table ...                              8-byte aligned, each with a CRC and a digest of its own
 *
 * A table starts with struct idm_section[N] (N and the order are fixed by the table's kind) and holds
 * flat arrays, addressed by index, never by pointer. A reader copies a table into private memory,
 * checks every section, index, order and string once, and then trusts it. Tables of equal digest are
 * shared between snapshots, so a change costs the tables it touched.
 *
 * This header is the only definition of the layout: native/ffi turns it into the cdef, and Python
 * packs with formats derived from that (ext_authz/engine/layout.py). Keep it to C11 declarations
 * and integer constants; no bit fields, no implicit padding.
 *
 * Integers are little endian; addresses are in network order as bytes; ports are host integers.
 */
#ifndef IDMESH_SNAPSHOT_H
#define IDMESH_SNAPSHOT_H

#ifndef __bpf__
#include <stdint.h>
#endif

#define IDM_FORMAT 1
#define IDM_NONE 0xffffffffu
/* Selector number of an entry without peer field: matches any peer. */
#define IDM_ANY 0xffffffffu

enum idm_table_kind {
	IDM_TABLE_IDENTITIES = 1, /* identities, endpoints, ipcache */
	IDM_TABLE_SELECTORS = 2,  /* selectors and, per identity, those that select it */
	IDM_TABLE_POLICIES = 3,   /* per subject identity: entries and L7 rules */
};
#define IDM_TABLE_COUNT 3

/* File head. crc32 (zlib's) covers header (crc32 as 0) and directory. */
struct idm_header {
	uint8_t magic[8]; /* "IDMSNAP\0" */
	uint32_t format;
	uint32_t header_size;
	uint64_t revision;
	uint64_t domain; /* identity domain the numbers belong to */
	uint64_t file_size;
	uint32_t table_count;
	uint32_t crc32;
	uint8_t digest[32]; /* BLAKE2b-256 of the three table digests in order, and domain (u64) */
};

struct idm_table_ref {
	uint32_t kind;
	uint32_t crc32; /* of the table's bytes */
	uint64_t offset;
	uint64_t size;
	uint64_t revision;  /* revision in which this content first appeared */
	/*
	 * BLAKE2b-256 of the table's section directory and of the BLAKE2b-256 digests of each 4096 bytes of each
	 * section, in order (a section's last block may be shorter). Readers only compare digests.
	 */
	uint8_t digest[32];
};

struct idm_section {
	uint32_t id;        /* position in the table's section enum */
	uint32_t item_size; /* sizeof of the item, 1 for bytes */
	uint64_t offset;    /* from the start of the table, 8-byte aligned */
	uint64_t count;     /* items */
};

/* A string in the table's STRINGS section; not NUL-terminated. */
struct idm_string {
	uint32_t offset;
	uint32_t size;
};

/* ---- table 1: identities ---- */

enum idm_identities_section {
	IDM_ID_META,       /* struct idm_identities_meta, exactly 1 */
	IDM_ID_IDENTITIES, /* struct idm_identity, rising by id */
	IDM_ID_LABELS,     /* struct idm_string "source:key=value", sorted within an identity */
	IDM_ID_NAMED,      /* struct idm_named_port, rising by (protocol, port) within its owner */
	IDM_ID_ENDPOINTS,  /* struct idm_endpoint */
	IDM_ID_HOSTS,      /* struct idm_host: open-addressing hash, count is a power of two (or 0) */
	IDM_ID_RANGES4,    /* struct idm_range4, rising by first; first item starts at 0.0.0.0 */
	IDM_ID_RANGES6,    /* struct idm_range6, rising by first; first item starts at :: */
	IDM_ID_STRINGS,    /* bytes */
	IDM_ID_SECTIONS,
};

struct idm_identities_meta {
	uint32_t world4; /* identity of an unknown IPv4 address: 2, or 9 with dual stack */
	uint32_t world6; /* 2, or 10 with dual stack */
	uint32_t host_probe_max; /* longest probe run in HOSTS */
	uint32_t reserved;
};

struct idm_identity {
	uint32_t id;
	uint32_t first_label;
	uint32_t label_count;
	/* Named ports of all endpoints of this identity (egress lookups by peer identity). */
	uint32_t first_named;
	uint32_t named_count;
	uint32_t flags; /* IDM_IDENTITY_* */
};
#define IDM_IDENTITY_WORLD 1u /* carries a reserved:world* label */

struct idm_named_port {
	struct idm_string name; /* lower case */
	uint16_t port;
	uint8_t protocol; /* IP protocol number */
	uint8_t reserved[5];
};

struct idm_endpoint {
	uint32_t identity;
	uint32_t flags; /* IDM_ENDPOINT_* */
	struct idm_string name; /* "namespace/name" */
	uint32_t first_named;
	uint32_t named_count;
};
#define IDM_ENDPOINT_LOCAL 1u /* policy is enforced here */
#define IDM_ENDPOINT_AUDIT 2u /* L3/L4 drops of this endpoint pass as AUDIT */

/*
 * One exact address (endpoint, node, /32 and /128). Slot is empty if family is 0. IPv4 in address[0..3], rest 0.
 * Its slot is idm_hash64(family, address, 16) & (count - 1) or one of the next host_probe_max - 1 (wrapping), with
 * no empty slot between; there always is an empty one.
 */
struct idm_host {
	uint8_t address[16];
	uint32_t identity;
	uint32_t endpoint; /* index, or IDM_NONE */
	uint8_t family;    /* 4 or 6 */
	uint8_t reserved[7];
};

/* Disjoint ranges: from first up to the next item's first. */
struct idm_range4 {
	uint8_t first[4];
	uint32_t identity;
};
struct idm_range6 {
	uint8_t first[16];
	uint32_t identity;
	uint32_t reserved;
};

/* ---- table 2: selectors ---- */

enum idm_selectors_section {
	IDM_SEL_SELECTORS, /* struct idm_selector; the index is the selector's number */
	IDM_SEL_ROWS,      /* struct idm_selected, rising by identity */
	IDM_SEL_LISTS,     /* uint32_t selector numbers, rising within a row */
	IDM_SEL_STRINGS,
	IDM_SEL_SECTIONS,
};

struct idm_selector {
	struct idm_string text; /* canonical text, for people */
};

struct idm_selected {
	uint32_t identity;
	uint32_t first; /* in LISTS */
	uint32_t count;
};

/* ---- table 3: policies ---- */

enum idm_policies_section {
	IDM_POL_META,      /* struct idm_policies_meta, exactly 1 */
	IDM_POL_SUBJECTS,  /* struct idm_subject, rising by identity */
	IDM_POL_POLICIES,  /* struct idm_policy */
	IDM_POL_ROWS,      /* struct idm_row, rising by selector within a side */
	IDM_POL_SPANS,     /* struct idm_span, rising by (protocol, first_port), disjoint within a row */
	IDM_POL_NAMED,     /* struct idm_named_span */
	IDM_POL_REFS,      /* uint32_t entry numbers; falling precedence within a span */
	IDM_POL_ENTRIES,   /* struct idm_entry */
	IDM_POL_ORIGINS,   /* uint32_t rule numbers, all that an entry was merged from, first is shown */
	IDM_POL_RULES,     /* struct idm_rule */
	IDM_POL_HTTP_SETS, /* struct idm_http_set */
	IDM_POL_HTTP_DIMS, /* struct idm_http_dim */
	IDM_POL_HTTP_SLOTS,      /* struct idm_http_slot */
	IDM_POL_HTTP_GROUP_REFS, /* uint32_t group numbers */
	IDM_POL_HTTP_GROUPS,     /* struct idm_http_group */
	IDM_POL_HTTP_PREDICATES, /* struct idm_header_predicate */
	IDM_POL_HTTP_RULES,      /* struct idm_http_rule */
	IDM_POL_KAFKA_SETS,      /* struct idm_kafka_set */
	IDM_POL_KAFKA_RULES,     /* struct idm_kafka_rule */
	IDM_POL_DNS_SETS,        /* struct idm_dns_set */
	IDM_POL_MATCHERS,        /* struct idm_matcher_ref */
	IDM_POL_AUTOMATA,        /* bytes: matcher blobs, each 8-byte aligned (matcher.h) */
	IDM_POL_STRINGS,
	IDM_POL_SECTIONS,
};

struct idm_policies_meta {
	uint32_t flags; /* IDM_POLICIES_* */
	uint32_t reserved;
};
#define IDM_POLICIES_CLOSED 1u /* node not ready: everything is denied (203) */

struct idm_subject {
	uint32_t identity;
	uint32_t policy;
};

/* One direction of a policy. */
struct idm_side {
	uint32_t flags; /* IDM_SIDE_* */
	uint32_t any_row; /* row of entries without peer field, or IDM_NONE */
	uint32_t first_row;
	uint32_t row_count; /* rows with a selector; any_row is not among them */
	/* Longest path and host, in bytes, that the HTTP rules can judge in time; longer ones are denied. 0: no limit. */
	uint32_t text_max;
};
#define IDM_SIDE_ENFORCED 1u /* without this flag everything passes (entries are empty) */
#define IDM_SIDE_AUDIT 2u    /* L3/L4 drops pass as AUDIT */
#define IDM_SIDE_ISOLATED 4u /* a policy of this subject could not be read: denied until it can */

struct idm_policy {
	struct idm_side side[2]; /* IDM_INGRESS, IDM_EGRESS */
};

/* All entries of one selector (or of any peer). */
struct idm_row {
	uint32_t selector; /* or IDM_ANY */
	uint32_t first_span;
	uint32_t span_count;
	uint32_t first_named;
	uint32_t named_count;
};

/*
 * Entries that cover these ports of the protocol. Entries for all traffic (protocol 0) are folded into the
 * spans of each protocol the row names, and stand alone in a span of protocol 0 (ports 0-65535) for the
 * others: a lookup reads the span of its own protocol if the row has any span of it that covers the port,
 * else the protocol 0 span. ICMP: port is the type, protocol 1 or 58.
 */
struct idm_span {
	uint16_t first_port;
	uint16_t last_port;
	uint8_t protocol;
	uint8_t reserved[3];
	uint32_t first_ref;
	uint32_t ref_count;
};

/* Entries for a named port: matched in addition to the span. */
struct idm_named_span {
	struct idm_string name;
	uint16_t last_port; /* 0: the port itself; else a range from the resolved port */
	uint8_t protocol;
	uint8_t reserved[5];
	uint32_t first_ref;
	uint32_t ref_count;
};

enum idm_entry_verdict { IDM_ENTRY_PASS = 0, IDM_ENTRY_ALLOW = 1, IDM_ENTRY_REDIRECT = 2, IDM_ENTRY_DENY = 3 };
enum idm_l7 { IDM_L7_NONE = 0, IDM_L7_HTTP = 1, IDM_L7_DNS = 2, IDM_L7_KAFKA = 3, IDM_L7_OTHER = 4, IDM_L7_LISTENER = 5 };
enum idm_auth { IDM_AUTH_UNSET = 0, IDM_AUTH_DISABLED = 1, IDM_AUTH_REQUIRED = 2, IDM_AUTH_ALWAYS_FAIL = 3 };
enum idm_tier { IDM_TIER_ADMIN = 0, IDM_TIER_NORMAL = 1, IDM_TIER_BASELINE = 2, IDM_TIER_DEFAULT = 3 };

/*
 * One compiled entry. precedence = (0xffffff - (tier << 22 | priority)) << 8 | low, low = 255 deny, 254..2
 * redirect (254 - listener priority), 1 allow, 0 pass: the greater number wins.
 */
struct idm_entry {
	uint32_t precedence;
	uint32_t priority;
	uint8_t verdict;
	uint8_t tier;
	uint8_t l7;
	uint8_t auth; /* as written on this entry */
	uint32_t flags; /* IDM_ENTRY_* flags */
	uint32_t selector;
	uint16_t first_port;
	uint16_t last_port;
	uint8_t protocol; /* 0: all traffic */
	uint8_t reserved[3];
	struct idm_string port_name; /* empty: numeric */
	uint32_t l7_set; /* index in the sets of its l7 kind, or IDM_NONE: all requests pass */
	uint32_t sni;    /* matcher of server names, or IDM_NONE */
	struct idm_string listener;
	uint32_t first_origin;
	uint32_t origin_count;
};
#define IDM_ENTRY_FLAG_AUDIT 1u      /* a denial by this entry is recorded, not enforced */
#define IDM_ENTRY_FLAG_SYNTHETIC 2u  /* no user wrote it: allow-localhost, default allow */
#define IDM_ENTRY_FLAG_EXACT_PORT 4u /* one port or a name: what the DNS proxy looks at */
#define IDM_ENTRY_FLAG_TERMINATES_TLS 8u
#define IDM_ENTRY_FLAG_PORT_WILDCARD 16u /* port "0" or no port: Kafka rules hold here too */

/* Where an entry was written. */
struct idm_rule {
	struct idm_string kind;
	struct idm_string name_space; /* empty for cluster-wide objects */
	struct idm_string name;
	struct idm_string file;
	struct idm_string path; /* "spec.ingress[0].toPorts[1]" */
	struct idm_string log;  /* log.value */
	uint32_t index;         /* rule within the object */
	uint32_t line;
	uint32_t column;
	uint32_t reserved;
};

/*
 * HTTP rules of one entry. Rules with equal guard (everything but the path) form a group; its paths are one
 * matcher. A group is filed under its most selective literal predicate (a dim and a value), so that a request
 * looks at one slot per dim, plus the groups that have no literal predicate.
 */
struct idm_http_set {
	uint32_t first_dim;
	uint32_t dim_count;
	uint32_t first_slot; /* open addressing, slot_count a power of two or 0 */
	uint32_t slot_count;
	uint32_t probe_max;
	uint32_t first_always; /* in GROUP_REFS */
	uint32_t always_count;
	uint32_t flags; /* IDM_HTTP_SET_* */
};
#define IDM_HTTP_SET_ACTIONS 1u /* some rule changes headers: all matching rules run */

/*
 * Dims of a set rise strictly by (kind, name). Value hashed: method or host as written, the header's value, or empty
 * for HEADER_PRESENT. Slots: linear probing from hash & (slot_count - 1), probe_max and free slots as for HOSTS; one
 * slot a hash. Only a predicate that must hold may file a group: one that fails on mismatch, never one that acts.
 */
enum idm_http_dim_kind { IDM_DIM_METHOD = 0, IDM_DIM_HOST = 1, IDM_DIM_HEADER_VALUE = 2, IDM_DIM_HEADER_PRESENT = 3 };
struct idm_http_dim {
	uint32_t kind;
	struct idm_string name; /* header name, lower case */
};

/*
 * Slot of hash idm_hash64(dim index within the set, value), at hash & (slot_count - 1) or one of the next
 * probe_max - 1 (wrapping), with no empty slot between. The value of IDM_DIM_HEADER_PRESENT is empty.
 * Groups check all their predicates, so a collision only costs time.
 */
struct idm_http_slot {
	uint64_t hash; /* 0: empty */
	uint32_t first_group; /* in GROUP_REFS */
	uint32_t group_count;
};

struct idm_http_group {
	uint32_t method; /* matcher, or IDM_NONE: any */
	uint32_t host;
	uint32_t path;
	uint32_t first_predicate;
	uint32_t predicate_count;
	/* Outcome i of the path matcher is HTTP rule first_rule + i. Without path matcher: first_rule. */
	uint32_t first_rule;
	uint32_t rule_count;
};

enum idm_mismatch { IDM_MISMATCH_FAIL = 0, IDM_MISMATCH_LOG = 1, IDM_MISMATCH_ADD = 2, IDM_MISMATCH_DELETE = 3, IDM_MISMATCH_REPLACE = 4 };
struct idm_header_predicate {
	struct idm_string name;  /* lower case */
	struct idm_string value; /* compared with all lines joined by "," */
	uint8_t present;  /* 1: only presence is tested, value is empty */
	uint8_t mismatch;
	uint8_t secret;   /* value came from a Secret: redact */
	uint8_t never;    /* the value is missing: the rule never matches */
	uint32_t reserved;
};

/* One HTTP rule as written (texts for people; matching is in the groups). */
struct idm_http_rule {
	struct idm_string method;
	struct idm_string host;
	struct idm_string path;
	uint32_t rule; /* where it was written, in RULES */
	uint32_t reserved;
};

struct idm_kafka_set {
	uint32_t first_rule;
	uint32_t rule_count;
};
struct idm_kafka_rule {
	uint64_t api_keys; /* bit k: key k; all ones: any key, also above 63 */
	int32_t api_version; /* -1: any */
	uint32_t rule;
	struct idm_string client_id; /* empty: any */
	struct idm_string topic;     /* empty: any */
};

struct idm_dns_set {
	uint32_t matcher; /* of names, lower case with trailing dot; IDM_NONE: all */
	uint32_t reserved;
};

struct idm_matcher_ref {
	uint64_t offset; /* in AUTOMATA */
	uint64_t size;
};

#endif
