/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flow record, and the ring that carries it from a thread that decides to the observer.
 *
 * A ring has one producer (an Envoy worker, a service process, BPF's reader) and one consumer. It lives in a
 * memfd whose size is sealed, so nobody can truncate it under a mapping. The producer keeps its own head privately
 * and masks every index it takes from shared memory: a hostile or dead consumer can lose records, never more. When
 * the ring is full a record is dropped and counted, the producer never waits.
 *
 * Records hold ids, not names: the consumer turns them into text with the snapshot of the record's revision.
 *
 * Producers hand their rings over a unix socket (SOCK_SEQPACKET) at STATE/flows.sock: one message a ring, an
 * idm_ring_hello with the memfd attached (SCM_RIGHTS). They connect again when the observer comes back.
 */
#ifndef IDMESH_FLOW_H
#define IDMESH_FLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "idmesh/engine.h"

#define IDM_RING_MAGIC 0x31676e69726d6469 /* "idmring1" */
#define IDM_RING_VERSION 1
#define IDM_FLOW_VERSION 1

enum idm_door { IDM_DOOR_MODULE = 1, IDM_DOOR_EXT_AUTHZ = 2, IDM_DOOR_EXT_PROC = 3, IDM_DOOR_BPF = 4 };

enum idm_flow_type {
	IDM_FLOW_REQUEST = 1,    /* a verdict on a request, written as it is given */
	IDM_FLOW_RESPONSE = 2,   /* the end of an allowed request: code, latency; no addresses, no text */
	IDM_FLOW_CONNECTION = 3, /* a verdict on a connection (L3/L4) */
	IDM_FLOW_END = 4,        /* the end of an allowed connection: latency is its duration */
	IDM_FLOW_DROP = 5,       /* a packet that is no connection's and was dropped in the kernel */
};

enum idm_flow_record_flags {
	IDM_RECORD_CUT = 1,          /* some text did not fit and was cut */
	IDM_RECORD_UPSTREAM = 2,     /* judged for the host that the load balancer chose */
	IDM_RECORD_AGAIN = 4,        /* judged again by a newer revision */
	IDM_RECORD_ERROR = 8,        /* denied because something inside failed */
	IDM_RECORD_GRPC = 16,        /* code is a grpc-status if IDM_RECORD_GRPC_STATUS is set too */
	IDM_RECORD_GRPC_STATUS = 32,
	IDM_RECORD_SHADOW = 64,      /* a verdict that was not enforced (observability mode) */
	IDM_RECORD_HEADERS_CUT = 128, /* headers are missing */
};

/*
 * One record. Texts follow the struct in this order: method, host, path, protocol, sni, traceparent, headers. Headers
 * are {uint16_t name_size, value_size; name; value} one after another, without padding. Only the headers that the
 * rules of the port name are kept; a value that a rule takes from a Secret is IDM_REDACTED instead. The whole record
 * is padded with zeros to a multiple of 8. Host byte order, ports too.
 */
struct idm_flow_record {
	uint32_t size; /* whole record with texts and padding */
	uint8_t version;
	uint8_t type;    /* idm_flow_type */
	uint8_t door;    /* idm_door */
	uint8_t verdict; /* idm_verdict_code; the final one of both directions */
	uint64_t time_ns;     /* CLOCK_REALTIME */
	uint8_t decision[16]; /* the decision id: flow.uuid; a response or end carries its request's */
	uint64_t revision;    /* of the snapshot that decided; 0: none */
	uint32_t source_identity;
	uint32_t destination_identity;
	uint32_t source_endpoint; /* index in that snapshot, or IDM_NONE */
	uint32_t destination_endpoint;
	uint8_t source_address[16]; /* of family 4: the first 4 bytes */
	uint8_t destination_address[16];
	uint16_t source_port;
	uint16_t destination_port; /* as policies see it */
	uint8_t family; /* 4, 6, or 0: no address */
	uint8_t protocol;
	uint8_t direction; /* idm_direction of the verdict that counts */
	uint8_t evidence;  /* mask of idm_evidence */
	uint16_t drop_reason; /* 0: not dropped at L3/L4 (or audited: what it would have been) */
	uint16_t code;        /* HTTP status of the answer, 0: none yet */
	uint8_t at;
	uint8_t match_type;
	uint8_t l7; /* idm_l7 of the redirect */
	uint8_t auth;
	uint32_t egress_entry; /* winning entry of each direction, or IDM_NONE (not judged, or no entry) */
	uint32_t ingress_entry;
	uint32_t egress_rule; /* winning HTTP rule, or IDM_NONE */
	uint32_t ingress_rule;
	uint32_t decision_ns; /* how long the engine took, both directions */
	uint32_t dropped_by;  /* idm_stage */
	uint64_t latency_ns;  /* RESPONSE, END: since the verdict */
	uint32_t flags;       /* idm_flow_record_flags */
	uint16_t method_size;
	uint16_t host_size;
	uint16_t path_size;
	uint16_t protocol_size; /* "HTTP/1.1" */
	uint16_t sni_size;
	uint16_t traceparent_size;
	uint16_t headers_size;
	uint16_t header_count;
	uint32_t reserved;
};

#define IDM_REDACTED "HUBBLE_REDACTED"
#define IDM_RECORD_MAX 4096
#define IDM_RECORD_PATH_MAX 1024
#define IDM_RECORD_TEXT_MAX 255 /* method, host, protocol, sni, traceparent, a header's name or value */

/* What a producer knows of a flow; texts are borrowed. `fixed` is copied, its sizes are filled in. */
struct idm_flow_facts {
	struct idm_flow_record fixed;
	struct idm_bytes method;
	struct idm_bytes host;
	struct idm_bytes path;
	struct idm_bytes protocol;
	struct idm_bytes sni;
	struct idm_bytes traceparent;
	const struct idm_header_line *headers; /* to be kept; value.ptr NULL with size 1: redacted */
	size_t header_count;
};

/* First page of the memfd; `size` bytes of data (a power of two) follow it. */
struct idm_ring_head {
	uint64_t magic;
	uint32_t version;
	uint32_t data_size;
	uint32_t door;   /* idm_door */
	uint32_t worker; /* number within the process */
	uint64_t pid;
	uint64_t reserved[4];
	/* Written by the producer. */
	uint64_t head; /* bytes ever written */
	uint64_t written; /* records */
	uint64_t lost; /* records that did not fit */
	uint64_t producer_reserved[5];
	/* Written by the consumer. */
	uint64_t tail; /* bytes ever read */
	uint64_t consumer_reserved[7];
};
#define IDM_RING_PAGE 4096
#define IDM_RING_MIN 65536
#define IDM_RING_MAX 268435456
#define IDM_RING_DEFAULT 2097152

/* What a producer says when it hands a ring over. */
struct idm_ring_hello {
	uint64_t magic;
	uint32_t version;
	uint32_t data_size;
	uint32_t door;
	uint32_t worker;
	uint64_t pid;
};

/*
 * ---- producer: one thread a ring; nothing here waits or allocates after create ----
 *
 * A child that is forked off inherits no ring: there every put is a loss that nobody counts, and destroy is safe.
 */

struct idm_ring;

/**
 * Make a ring in a memfd of its own, sealed against any change of size, its memory there from the start: a put never
 * meets a page that the system cannot give.
 * @param[in] data_size Power of two from IDM_RING_MIN to IDM_RING_MAX.
 * @return NULL, errno set: EINVAL, ENOMEM, EMFILE.
 */
struct idm_ring *idm_ring_create(uint32_t data_size, uint32_t door, uint32_t worker);
void idm_ring_destroy(struct idm_ring *ring);
/* Borrowed; to be handed over. */
int idm_ring_fd(const struct idm_ring *ring);
void idm_ring_describe(const struct idm_ring *ring, struct idm_ring_hello *ret);
/* From any thread. */
uint64_t idm_ring_written(const struct idm_ring *ring);
uint64_t idm_ring_lost(const struct idm_ring *ring);
/**
 * Whether a record would fit, for whoever need not gather its facts if not: false has counted it as lost.
 * The next idm_ring_put() after true writes.
 */
bool idm_ring_ready(struct idm_ring *ring);
/**
 * Write one record, with the texts cut to their limits.
 * @return 0, or -ENOSPC: the ring is full, the record is lost and counted.
 */
int idm_ring_put(struct idm_ring *ring, const struct idm_flow_facts *facts);

/**
 * Hand rings over to the observer at STATE/flows.sock. Never waits.
 * @param[in,out] connection File descriptor of the connection, -1: none. It is made, checked and, once the observer
 *                           is gone, closed here; call at intervals (a second), from one thread.
 * @return 1 newly handed over, 0 nothing to do or nobody there, or a negative errno to be logged.
 */
int idm_rings_offer(const char *path, struct idm_ring *const *rings, size_t count, int *connection);

/* ---- consumer ---- */

struct idm_ring_view;

/**
 * Map a ring that was handed over.
 * @param[in] fd Kept by the caller. Refused unless it is a memfd sealed against shrinking, of the size it claims.
 * @return 0, -EINVAL or -ENOMEM.
 */
int idm_ring_open(int fd, struct idm_ring_view **ret);
void idm_ring_close(struct idm_ring_view *view);
/**
 * Copy whole records out, oldest first, and free their room.
 * What is not a record (a hostile producer) ends the view: everything up to the producer's head is skipped.
 * @param[out] room At least IDM_RECORD_MAX bytes.
 * @return Bytes copied; -EBADMSG if something was skipped.
 */
int64_t idm_ring_take(struct idm_ring_view *view, char *room, size_t room_size);
/* Producer's own counts, as they stand there. */
uint64_t idm_ring_view_written(const struct idm_ring_view *view);
uint64_t idm_ring_view_lost(const struct idm_ring_view *view);

#endif
