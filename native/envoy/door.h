/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One place where flows are judged: whose policy, in which direction, and for which destination.
 *
 * A listener's own address need not be the workload's: Envoy may stand at 127.0.0.1:8000 before a workload at
 * 10.0.0.5:8080. So the configuration says which destination a connection is for:
 *   "local"          the connection's own local address and port (Envoy stands on the workload's address)
 *   "ADDR[:PORT]"    that address; its endpoint is looked up in each snapshot anew
 *   "NS/NAME[:PORT]" that endpoint, whatever its address
 *   upstream filter  the host that the load balancer chose
 * "port" overrides the port that policies see.
 *
 * A connection that the datapath steered here brings who its ends are and which directions are to be judged; then
 * "direction" and "destination" say nothing, and a snapshot that contradicts what it brings closes it.
 *
 * What the peer's identity may rest on (idmesh/peer.h): "trust_domain" makes certificates evidence, and is the word
 * of whoever configures this listener that it verifies them; "require" lists evidence that must be there; "address":
 * "ignored" (default "evidence") says that peers come through others' addresses.
 *
 * "metadata" says whose decisions are written into dynamic metadata: "denied" (the default), "all" or "none". Writing
 * one costs several times what judging costs, so allowed requests have it only on demand.
 */
#ifndef IDMESH_ENVOY_DOOR_H
#define IDMESH_ENVOY_DOOR_H

#include "address.h"
#include "idmesh/engine.h"
#include "idmesh/peer.h"
#include "json.h"
#include "steered.h"

enum destination { DESTINATION_LOCAL, DESTINATION_ADDRESS, DESTINATION_ENDPOINT, DESTINATION_UPSTREAM };
enum show { SHOW_NOTHING, SHOW_DENIED, SHOW_ALL };

struct door {
	bool ingress;
	bool egress;
	enum destination destination;
	struct address address;
	char *endpoint;
	uint32_t endpoint_hint; /* accessed with relaxed atomics */
	uint16_t port;
	enum show metadata;
	char *body;
	char *trust_domain;
	struct idm_peer_rules rules; /* borrows trust_domain */
	bool requests_follow; /* set by who asks about connections whose requests another filter judges one by one */
};

/**
 * Read a filter's configuration; upstream: it judges the chosen host, and may not name another.
 * @param[out] ret Deinitialized by door_deinit() whatever is returned.
 */
bool door_init(struct door *ret, struct idm_bytes config, bool upstream, struct idm_error *why);
void door_deinit(struct door *door);

/* What the listener filter learned about a connection, and what the other filters decide from. */
#define CONNECTION_MAGIC 0x326d6469u /* "idm2" */
#define CONNECTION_SNI_MAX 255
struct connection {
	uint32_t magic;
	uint16_t sni_known;
	uint16_t sni_size;
	struct address peer;
	struct address local;
	struct steered steered;
	char sni[CONNECTION_SNI_MAX + 1];
	struct idm_bytes certificate; /* borrowed from Envoy, not among the bytes; see idm_peer_facts */
};
/* Filter state in which Envoy's set_filter_state reports the certificate. */
#define CERTIFICATE_KEY IDM_TEXT("idmesh.certificate")
#define CONNECTION_HEAD offsetof(struct connection, sni)
/* False unless the bytes are those of connection_bytes(). */
bool connection_read(struct idm_bytes bytes, struct connection *ret);
struct idm_bytes connection_bytes(const struct connection *connection);

/* Both directions' verdicts, in the order judged. The last one is the answer. */
struct decision {
	struct idm_verdict verdicts[2];
	unsigned int count;
	bool allowed;
	bool error;
	uint8_t direction; /* of the last verdict */
	uint8_t evidence;  /* mask of idm_evidence: what the source's identity rests on */
	uint32_t source;   /* identities */
	uint32_t destination;
	uint32_t source_endpoint; /* indexes, or IDM_NONE */
	uint32_t destination_endpoint;
	uint64_t revision;
	uint64_t expiry_ms; /* when the source's evidence ends; 0: never */
	struct address target; /* the destination that was judged, with the port that policies see */
};
/* Nothing known and nothing judged yet. */
void decision_init(struct decision *ret);
static inline const struct idm_verdict *decision_last(const struct decision *decision)
{
	return &decision->verdicts[decision->count - 1];
}

/**
 * Judge one flow at a door.
 * @param[in] snapshot NULL: everything is denied (203).
 * @param[in] upstream The chosen host, if the door judges that one.
 * @param[in] http     Facts of the request, or NULL: then an entry that needs a proxy closes the flow (180).
 */
void door_decide(struct door *door, const struct idm_snapshot *snapshot, const struct connection *connection,
		 const struct address *upstream, const struct idm_http *http, struct decision *ret);
/* A denial for a reason that lies before any policy. */
void door_refuse(uint16_t drop_reason, bool error, struct decision *ret);

#endif
