/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ext_authz door: the bytes of a CheckRequest in, the bytes of a CheckResponse out.
 *
 * Only the fields that a decision needs are read, in place; nothing is allocated per request. What cannot be
 * read is denied. Source: envoy/service/auth/v3/{external_auth,attribute_context}.proto.
 */
#ifndef IDMESH_CHECK_H
#define IDMESH_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "idmesh/engine.h"
#include "idmesh/flow.h"
#include "idmesh/peer.h"

/* Room a response may need at most: header changes, texts of the rule, body. */
#define IDM_CHECK_RESPONSE_MAX 65536
#define IDM_CHECK_BOTH 2 /* direction: egress of the source if it is local, then ingress of the destination */

/* What Envoy's configuration says about the filter that asks (never the client). */
struct idm_check_options {
	uint32_t direction; /* idm_direction or IDM_CHECK_BOTH */
	uint32_t http_follows; /* 1: an HTTP filter behind this network filter asks again */
	uint32_t port; /* that policies see; 0: the destination's own */
	uint32_t source_address; /* 1: ext_proc may take the peer from source.address (no X-Forwarded-For is believed) */
	/* NAMESPACE/NAME[:PORT], ADDRESS or ADDRESS:PORT of the destination; empty: the connection's own. */
	struct idm_bytes destination;
	struct idm_peer_rules peer;
	/* What Envoy reports of the client's certificate, filled in for this call; see idm_peer_facts. */
	struct idm_bytes certificate;
};

/* Why a request was denied without asking the engine. */
enum idm_check_error {
	IDM_CHECK_FINE = 0,
	IDM_CHECK_MALFORMED = 1, /* not a CheckRequest, or larger than we read */
	IDM_CHECK_NO_SNAPSHOT = 2,
	IDM_CHECK_NO_PEER = 3,	     /* no address, or none we can read */
	IDM_CHECK_DISAGREE = 4,	     /* evidence contradicts evidence, or required evidence is missing */
	IDM_CHECK_NO_DESTINATION = 5, /* no endpoint there */
	IDM_CHECK_ENGINE = 6,	     /* the engine refused the flow */
	IDM_CHECK_TOO_LARGE = 7,     /* the response does not fit */
};

struct idm_check_result {
	uint64_t revision; /* snapshot that decided; 0: none */
	uint32_t offset;   /* of the response in the caller's room */
	uint32_t size;
	uint32_t source_identity;
	uint32_t destination_identity;
	uint32_t entry;
	uint32_t http_rule;
	uint16_t drop_reason;
	uint8_t verdict; /* idm_verdict_code: FORWARDED, DROPPED or AUDIT */
	uint8_t at;
	uint8_t error; /* idm_check_error */
	uint8_t direction;
	uint8_t http;
	uint8_t auth;
	char decision_id[32]; /* hexadecimal */
};

struct idm_checker; /* one per thread that answers */

/**
 * @param[in] reader Borrowed; must outlive the checker.
 * @return NULL without memory.
 */
struct idm_checker *idm_checker_create(struct idm_reader *reader);
void idm_checker_destroy(struct idm_checker *checker);
/* Write flow records there from now on. Borrowed; NULL: nowhere. */
void idm_checker_record(struct idm_checker *checker, struct idm_ring *ring);

/**
 * Answer one CheckRequest. Always gives a response; whatever goes wrong, it is a denial.
 * @param[in] request Borrowed bytes.
 * @param[out] room   At least IDM_CHECK_RESPONSE_MAX bytes; the response is written at its end.
 * @param[out] ret    Where the response is, and what was decided.
 * @return 0, or -EINVAL with ret->error set.
 */
int idm_check(struct idm_checker *checker, const struct idm_check_options *options, const char *request,
	      size_t size, char *room, size_t room_size, struct idm_check_result *ret);

#endif
