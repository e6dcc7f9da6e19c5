/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine: one flow in, one verdict out. No I/O, no Envoy, no libbpf; decisions neither allocate nor lock.
 */
#ifndef IDMESH_ENGINE_H
#define IDMESH_ENGINE_H

#ifndef __bpf__
#include <stddef.h>
#include <stdint.h>
#endif

#include "idmesh/snapshot.h"

enum idm_direction { IDM_INGRESS = 0, IDM_EGRESS = 1 };
/* Hubble's numbers. */
enum idm_verdict_code { IDM_FORWARDED = 1, IDM_DROPPED = 2, IDM_AUDIT = 4, IDM_REDIRECTED = 5 };
/* Hubble's drop reasons; 0: not dropped at L3/L4. */
enum idm_drop {
	IDM_DROP_POLICY_DENIED = 133,
	IDM_DROP_NO_POLICY = 165,
	IDM_DROP_INVALID_IDENTITY = 171,
	IDM_DROP_UNKNOWN_SENDER = 172,
	IDM_DROP_PROXY_UNSUPPORTED = 180,
	IDM_DROP_POLICY_DENY = 181,
	IDM_DROP_AUTH_REQUIRED = 189,
	IDM_DROP_NOT_READY = 203,
};
/* Where the final answer was found. */
enum idm_at { IDM_AT_NONE = 0, IDM_AT_L4 = 1, IDM_AT_PROXY = 2, IDM_AT_DIRECT = 3 };
/* What dropped a flow, where verdict is DROPPED: doors answer each in its protocol's way. */
enum idm_stage {
	IDM_STAGE_NONE = 0,
	IDM_STAGE_L4 = 1,      /* see drop_reason */
	IDM_STAGE_SNI = 2,     /* no list holds the server name: reset */
	IDM_STAGE_HTTP = 3,    /* no rule holds the request: 403 */
	IDM_STAGE_PATH = 4,    /* path refused, or not canonical: 403 */
	IDM_STAGE_CHANGES = 5, /* more header changes than IDM_CHANGES_MAX: 403 */
	IDM_STAGE_DNS = 6,     /* REFUSED */
	IDM_STAGE_KAFKA = 7,   /* error 29 */
	IDM_STAGE_PARSER = 8,  /* the redirect names a parser this engine does not have */
	IDM_STAGE_KIND = 9,    /* the redirect cannot judge facts of this kind: drop_reason 180 */
};
/* What the peer's identity rests on (mask). */
enum idm_evidence { IDM_EVIDENCE_ADDRESS = 1, IDM_EVIDENCE_DATAPATH = 2, IDM_EVIDENCE_CERTIFICATE = 4 };
enum idm_match_type {
	IDM_MATCH_NONE = 0, IDM_MATCH_L3_ONLY = 1, IDM_MATCH_L3_L4 = 2, IDM_MATCH_L4_ONLY = 3,
	IDM_MATCH_ALL = 4, IDM_MATCH_L3_PROTO = 5, IDM_MATCH_PROTO_ONLY = 6,
};

/* Borrowed bytes. ptr may be NULL if size is 0. */
struct idm_bytes {
	const char *ptr;
	size_t size;
};

struct idm_header_line {
	struct idm_bytes name; /* any case */
	struct idm_bytes value;
};

struct idm_http {
	struct idm_bytes method;
	struct idm_bytes path; /* :path with query */
	struct idm_bytes host; /* :authority */
	const struct idm_header_line *headers; /* no pseudo headers */
	size_t header_count;
};

struct idm_kafka {
	int32_t api_key;
	int32_t api_version;
	struct idm_bytes client_id;
	const struct idm_bytes *topics;
	size_t topic_count;
};

enum idm_flow_flags {
	IDM_FLOW_HTTP = 1,
	IDM_FLOW_DNS = 2,
	IDM_FLOW_KAFKA = 4,
	IDM_FLOW_SNI = 8, /* sni is known, perhaps empty */
	/*
	 * Bring the path into canonical form before matching. Without it a path that is not canonical is denied, unless
	 * L3/L4 alone allows the flow. Paths over 16 KiB are denied.
	 */
	IDM_FLOW_RAW_PATH = 16,
	/* Deny (189) if the winning entry demands authentication that the peer's evidence does not give. */
	IDM_FLOW_ENFORCE_AUTH = 32,
};

struct idm_peer {
	uint32_t identity;
	uint32_t evidence;    /* mask of idm_evidence */
	uint64_t domain;      /* identity domain the number belongs to; 0: the snapshot's own */
	uint64_t expiry_ms;   /* unix time when the certificate's evidence ends; 0: none */
};

struct idm_flow {
	uint32_t direction;
	uint32_t flags;
	/* The end whose policy decides: an endpoint's index, or IDM_NONE and then subject_identity. */
	uint32_t endpoint;
	uint32_t subject_identity;
	struct idm_peer peer;
	uint64_t now_ms; /* only read where a certificate's evidence is judged */
	uint16_t port; /* destination port, or ICMP type */
	uint8_t protocol;
	uint8_t reserved[5];
	struct idm_http http;
	struct idm_bytes dns; /* query name, any case, with or without trailing dot */
	struct idm_bytes sni;
	struct idm_kafka kafka;
};

/* Name and value point into the snapshot. */
struct idm_header_change {
	struct idm_bytes name;
	struct idm_bytes value;
	uint32_t action; /* IDM_MISMATCH_LOG, _ADD, _DELETE, _REPLACE */
	uint32_t secret;
};
#define IDM_CHANGES_MAX 16

struct idm_verdict {
	uint8_t verdict; /* idm_verdict_code: the L3/L4 answer without request facts, the final one with */
	uint8_t at;
	uint8_t auth;    /* demanded by the winning entry (inherited included) */
	uint8_t l7;      /* kind of the redirect, if L3/L4 redirected */
	uint8_t match_type;
	uint8_t l4_verdict; /* the L3/L4 stage alone */
	uint16_t drop_reason;
	/* Winning entry, or IDM_NONE. A request that no list holds shows the redirect that demanded one. */
	uint32_t entry;
	uint32_t l4_entry;  /* entry that decided L3/L4, or IDM_NONE */
	uint32_t http_rule; /* winning HTTP rule, or IDM_NONE */
	uint32_t change_count;
	uint32_t dropped_by; /* idm_stage; IDM_STAGE_NONE unless verdict is DROPPED */
	/*
	 * idm_l7 that is still to be judged, behind a connection that passed by its server name alone: HTTP if the
	 * winning entry has rules for requests, LISTENER. A door that nobody follows must close then.
	 */
	uint32_t left;
	uint64_t revision;
	struct idm_header_change changes[IDM_CHANGES_MAX];
};

struct idm_error {
	char message[256];
};

struct idm_snapshot;

/**
 * Copy, check and index a snapshot.
 * @param[in] data     The file's bytes; not kept.
 * @param[in] previous Snapshot whose tables of equal digest are shared, or NULL.
 * @param[out] ret     A reference the caller owns.
 * @return 0, -EINVAL (not a snapshot, damaged: see err), -ENOTSUP (other format version), -ENOMEM.
 */
int idm_snapshot_load(const void *data, size_t size, struct idm_snapshot *previous,
		      struct idm_snapshot **ret, struct idm_error *err);
void idm_snapshot_ref(struct idm_snapshot *snapshot);
void idm_snapshot_unref(struct idm_snapshot *snapshot);
uint64_t idm_snapshot_revision(const struct idm_snapshot *snapshot);
uint64_t idm_snapshot_domain(const struct idm_snapshot *snapshot);
/* Borrowed 32 bytes. */
const uint8_t *idm_snapshot_digest(const struct idm_snapshot *snapshot);
/* Borrowed bytes of one table (validated), for readers that show it. NULL if the kind is unknown. */
const void *idm_snapshot_table(const struct idm_snapshot *snapshot, uint32_t kind, size_t *size);

/**
 * Identity (and endpoint) of an address. IPv4-mapped IPv6 addresses count as IPv4.
 * @param[in] family 4 or 6.
 * @param[in] address 4 or 16 bytes, network order.
 * @param[out] endpoint Index, or IDM_NONE.
 * @return 0, or -EINVAL for another family. Unknown addresses give the world identity.
 */
int idm_resolve(const struct idm_snapshot *snapshot, int family, const uint8_t *address,
		uint32_t *identity, uint32_t *endpoint);

/**
 * Decide one flow. Thread-safe; does not allocate or lock.
 * Asked in this order: node closed 203; unknown subject 165; no evidence (an ended certificate is none) 172; peer of
 * another domain or without identity 171; side isolated 133; side not enforced: passes; deny entry 181; no entry 133;
 * authentication 189. Audit turns 133 and 181 of an enforced side into IDM_AUDIT: the flow passes as if direct, and
 * drop_reason keeps what it would have been.
 * @return 0, or -EINVAL (unknown direction): the verdict is then DROPPED too.
 */
int idm_decide(const struct idm_snapshot *snapshot, const struct idm_flow *flow, struct idm_verdict *ret);

/* True if some HTTP rule that could judge this flow reads headers (a door may spare fetching them). */
int idm_reads_headers(const struct idm_snapshot *snapshot, const struct idm_flow *flow);

#define IDM_KEPT_ENTRIES_MAX 4
#define IDM_KEPT_LINES_MAX 32
/**
 * Headers of a request that the HTTP rules of some entries name: what a flow record keeps. Costs nothing where no rule
 * reads headers. A value that any rule of the snapshot compares with a Secret is hidden: ptr NULL, size 1.
 * @param[in] entries   A verdict's entry and l4_entry, of both directions; IDM_NONE is passed over.
 * @param[out] lines    Borrowed from http, in its order.
 * @param[out] cut      1 if lines may be missing.
 * @return Number of lines.
 */
size_t idm_kept_headers(const struct idm_snapshot *snapshot, const uint32_t *entries, size_t entry_count,
			const struct idm_http *http, struct idm_header_line lines[IDM_KEPT_LINES_MAX], int *cut);

/**
 * Canonical form of an HTTP path: what Envoy 1.40 makes of it with normalize_path, merge_slashes and
 * UNESCAPE_AND_REDIRECT, stricter where a backend might read more into it. The query is kept.
 *
 *   resolved: dot segments, also written %2e; \, %5c and %2f count as /; // is one / (a path of slashes alone: //)
 *   decoded:  %41, %2d, %5f, %7e and other letters, digits and -._~; other escapes stay as written
 *   encoded:  space " < > ^ ` { | } in the path
 *   refused:  no leading slash (empty path, *, absolute form), fragment, control bytes, bytes from 0x80 in the
 *             path, %00, % without two hex digits, and dot segments with parameters (..;x): Envoy 1.38 hands them on,
 *             1.39 resolves them, some backends climb up
 *   kept:     parameters of other segments (;x)
 *
 * CONNECT has no path: with idm_decide() an empty path holds only for rules without path.
 * @param[out] out 3 * path.size bytes at least; may not overlap path.
 * @param[out] out_size Bytes written.
 * @return 1 canonical already, 0 changed, -EINVAL refused.
 */
int idm_path_canonicalize(struct idm_bytes path, char *out, size_t *out_size);

/* 64-bit hash used by the snapshot's tables. Never 0. */
uint64_t idm_hash64(uint64_t seed, const void *data, size_t size);

/* CRC-32 as zlib computes it. crc is the value so far, 0 at the start. */
uint32_t idm_crc32(uint32_t crc, const void *data, size_t size);

/* ---- explaining ---- */

enum idm_consider {
	IDM_CONSIDER_WON = 0, IDM_CONSIDER_MATCHED = 1, /* matched, but another took precedence */
	IDM_CONSIDER_PEER = 2, IDM_CONSIDER_PROTOCOL = 3, IDM_CONSIDER_PORT = 4, IDM_CONSIDER_PORT_NAME = 5,
	IDM_CONSIDER_L7 = 6, IDM_CONSIDER_SNI = 7, IDM_CONSIDER_PASSED_OVER = 8 /* skipped by a pass entry */
};
struct idm_considered {
	uint32_t entry;
	uint32_t reason; /* idm_consider */
};
/**
 * Decide, and list what was considered on the subject's side. Slow; for people.
 * @param[in,out] count Room in list; then the number there are (may be more than room).
 */
int idm_explain(const struct idm_snapshot *snapshot, const struct idm_flow *flow, struct idm_verdict *ret,
		struct idm_considered *list, size_t *count);

/* ---- batch: arrays in and out, strings as offsets into one arena ---- */

struct idm_batch_flow {
	uint32_t direction;
	uint32_t flags;
	uint32_t endpoint;
	uint32_t subject_identity;
	uint32_t peer_identity;
	uint32_t evidence;
	uint16_t port;
	uint8_t protocol;
	uint8_t reserved;
	uint32_t header_first; /* in the header array */
	uint32_t header_count;
	struct idm_string method;
	struct idm_string path;
	struct idm_string host;
	struct idm_string dns;
	struct idm_string sni;
};
struct idm_batch_header {
	struct idm_string name;
	struct idm_string value;
};
struct idm_batch_verdict {
	uint8_t verdict;
	uint8_t at;
	uint8_t auth;
	uint8_t l7;
	uint16_t drop_reason;
	uint8_t match_type;
	uint8_t l4_verdict;
	uint32_t entry;
	uint32_t http_rule;
};
/**
 * Decide many flows (no Kafka facts). A flow whose offsets leave the arena is DROPPED with -EINVAL at the end.
 * @return 0, or -EINVAL if any flow was malformed (the others are decided).
 */
int idm_decide_batch(const struct idm_snapshot *snapshot, const struct idm_batch_flow *flows, size_t count,
		     const struct idm_batch_header *headers, size_t header_count, const char *arena,
		     size_t arena_size, struct idm_batch_verdict *verdicts);

/* ---- publishing ---- */

struct idm_store;
struct idm_reader; /* one per thread that decides */

struct idm_store *idm_store_create(void);
/* All readers must be gone. */
void idm_store_destroy(struct idm_store *store);
/* Takes over the caller's reference (NULL: nothing, everything is denied). Frees what no reader holds. Single publisher. */
void idm_store_publish(struct idm_store *store, struct idm_snapshot *snapshot);
struct idm_reader *idm_reader_create(struct idm_store *store);
void idm_reader_destroy(struct idm_reader *reader);
/* Current snapshot, or NULL; stays valid until idm_reader_leave. Never waits. */
const struct idm_snapshot *idm_reader_enter(struct idm_reader *reader);
void idm_reader_leave(struct idm_reader *reader);
/* Publisher's side: lowest revision any reader saw at its last entry; 0 if none entered yet. */
uint64_t idm_store_readers_revision(struct idm_store *store);
/* A reference to the current snapshot for the publisher's own use, or NULL. */
struct idm_snapshot *idm_store_current(struct idm_store *store);

#endif
