// SPDX-License-Identifier: Apache-2.0
// From a connection and a configuration to the engine's flows, and back to one answer. Every doubt denies.

#include "door.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "view.h"

#define PROTOCOL_TCP 6
#define IDENTITY_HOST 1

struct end {
	uint32_t identity;
	uint32_t endpoint;
	bool told; // the datapath says the identity, and no address could: its policy is found by that
};

static bool set_direction(struct door *door, const char *text)
{
	bool both = !strcmp(text, "both");

	door->ingress = both || !strcmp(text, "ingress");
	door->egress = both || !strcmp(text, "egress");
	return door->ingress || door->egress;
}

// "NAMESPACE/NAME" or "NAMESPACE/NAME:PORT".
static bool set_endpoint(struct door *door, const char *text)
{
	const char *colon = strrchr(text, ':');

	door->destination = DESTINATION_ENDPOINT;
	door->endpoint = strndup(text, colon ? (size_t)(colon - text) : strlen(text));
	return door->endpoint && (!colon || address_parse_port(colon + 1, &door->port));
}

static bool set_destination(struct door *door, const char *text)
{
	if (!strcmp(text, "local")) {
		door->destination = DESTINATION_LOCAL;
		return true;
	}
	if (strchr(text, '/'))
		return set_endpoint(door, text);
	door->destination = DESTINATION_ADDRESS;
	if (!address_parse((struct idm_bytes){text, strlen(text)}, &door->address))
		return false;
	door->port = door->address.port;
	return true;
}

static bool set_metadata(struct door *door, const char *text)
{
	static const char *const names[] = {"none", "denied", "all"};

	for (unsigned int i = 0; i < 3; i++) {
		if (!strcmp(text, names[i])) {
			door->metadata = (enum show)i;
			return true;
		}
	}
	return false;
}

static bool add_required(struct door *door, const char *text)
{
	static const char *const names[] = {"address", "datapath", "certificate"};

	for (unsigned int i = 0; i < 3; i++) {
		if (!strcmp(text, names[i])) {
			door->rules.required |= 1u << i; // the order of enum idm_evidence
			return true;
		}
	}
	return false;
}

static bool refuse_value(struct idm_error *why, const char *key, const char *wanted)
{
	snprintf(why->message, sizeof(why->message), "%s: must be %s", key, wanted);
	return false;
}

static bool set_fields(struct door *door, const char *direction, const char *destination, const char *metadata,
		       uint64_t port, bool upstream, struct idm_error *why)
{
	if (direction && !set_direction(door, direction))
		return refuse_value(why, "direction", "ingress, egress or both");
	if (upstream && destination)
		return refuse_value(why, "destination", "absent in an upstream filter: the chosen host is judged");
	if (destination && !set_destination(door, destination))
		return refuse_value(why, "destination", "local, or an address or NAMESPACE/NAME with or without :PORT");
	if (metadata && !set_metadata(door, metadata))
		return refuse_value(why, "metadata", "all, denied or none");
	if (port > 65535)
		return refuse_value(why, "port", "from 1 to 65535");
	if (port)
		door->port = (uint16_t)port;
	return true;
}

static bool set_evidence(struct door *door, const char *address, const struct text_list *require, struct idm_error *why)
{
	bool ignored = address && !strcmp(address, "ignored");

	for (size_t i = 0; i < require->count; i++)
		if (!add_required(door, require->items[i]))
			return refuse_value(why, "require", "a list of address, datapath and certificate");
	if (address && !ignored && strcmp(address, "evidence"))
		return refuse_value(why, "address", "evidence or ignored");
	door->rules.address_ignored = ignored;
	if (door->trust_domain)
		door->rules.trust_domain = (struct idm_bytes){door->trust_domain, strlen(door->trust_domain)};
	if (!idm_peer_rules_valid(&door->rules))
		return refuse_value(why, "trust_domain",
				    "a SPIFFE trust domain where certificates are required or the address is ignored, "
				    "and an ignored address is not required");
	return true;
}

bool door_init(struct door *ret, struct idm_bytes config, bool upstream, struct idm_error *why)
{
	char *direction = NULL, *destination = NULL, *metadata = NULL, *address = NULL;
	struct text_list require = {0};
	uint64_t port = 0;
	const struct json_field fields[] = {
		{"direction", JSON_TEXT, &direction}, {"destination", JSON_TEXT, &destination},
		{"metadata", JSON_TEXT, &metadata},   {"port", JSON_NUMBER, &port},
		{"body", JSON_TEXT, &ret->body},      {"trust_domain", JSON_TEXT, &ret->trust_domain},
		{"require", JSON_LIST, &require},     {"address", JSON_TEXT, &address},
	};
	bool good;

	memset(ret, 0, sizeof(*ret));
	ret->ingress = true;
	ret->metadata = SHOW_DENIED;
	ret->destination = upstream ? DESTINATION_UPSTREAM : DESTINATION_LOCAL;
	good = json_read(config, fields, sizeof(fields) / sizeof(*fields), why) &&
	       set_fields(ret, direction, destination, metadata, port, upstream, why) &&
	       set_evidence(ret, address, &require, why);
	text_list_deinit(&require);
	free(address);
	free(direction);
	free(destination);
	free(metadata);
	if (good && !ret->body)
		ret->body = strdup("Access denied\r\n");
	return good && ret->body;
}

void door_deinit(struct door *door)
{
	free(door->endpoint);
	free(door->body);
	free(door->trust_domain);
}

bool connection_read(struct idm_bytes bytes, struct connection *ret)
{
	if (bytes.size < CONNECTION_HEAD || bytes.size > CONNECTION_HEAD + CONNECTION_SNI_MAX)
		return false;
	memcpy(ret, bytes.ptr, bytes.size);
	ret->certificate = (struct idm_bytes){0};
	return ret->magic == CONNECTION_MAGIC && bytes.size == CONNECTION_HEAD + ret->sni_size;
}

struct idm_bytes connection_bytes(const struct connection *connection)
{
	return (struct idm_bytes){(const char *)connection, CONNECTION_HEAD + connection->sni_size};
}

void decision_init(struct decision *ret)
{
	ret->count = 0;
	ret->allowed = ret->error = false;
	ret->direction = IDM_INGRESS;
	ret->evidence = 0;
	ret->source = ret->destination = 0;
	ret->source_endpoint = ret->destination_endpoint = IDM_NONE;
	ret->revision = ret->expiry_ms = 0;
	ret->target = (struct address){0};
}

void door_refuse(uint16_t drop_reason, bool error, struct decision *ret)
{
	struct idm_verdict *verdict = &ret->verdicts[0];

	memset(verdict, 0, offsetof(struct idm_verdict, changes));
	verdict->verdict = verdict->l4_verdict = IDM_DROPPED;
	verdict->at = IDM_AT_L4;
	verdict->drop_reason = drop_reason;
	verdict->dropped_by = IDM_STAGE_L4;
	verdict->entry = verdict->l4_entry = verdict->http_rule = IDM_NONE;
	ret->count = 1;
	ret->allowed = false;
	ret->error = error;
}

static bool resolve(const struct idm_snapshot *snapshot, const struct address *address, struct end *ret)
{
	return address->family &&
	       !idm_resolve(snapshot, address->family, address->bytes, &ret->identity, &ret->endpoint);
}

static bool resolve_name(struct door *door, const struct idm_snapshot *snapshot, struct end *ret)
{
	uint32_t hint = __atomic_load_n(&door->endpoint_hint, __ATOMIC_RELAXED);
	uint32_t before = hint;
	const struct idm_endpoint *endpoint;

	ret->endpoint = view_endpoint_by_name(snapshot, (struct idm_bytes){door->endpoint, strlen(door->endpoint)},
					      &hint);
	endpoint = view_endpoint(snapshot, ret->endpoint);
	if (!endpoint)
		return false;
	if (hint != before)
		__atomic_store_n(&door->endpoint_hint, hint, __ATOMIC_RELAXED);
	ret->identity = endpoint->identity;
	return true;
}

// The address and port that are judged. A named endpoint's is where the client connected to.
static bool find_target(const struct door *door, const struct connection *connection, const struct address *upstream,
			struct address *ret)
{
	*ret = connection->local;
	if (door->destination == DESTINATION_UPSTREAM) {
		if (!upstream)
			return false;
		*ret = *upstream;
	}
	if (door->destination == DESTINATION_ADDRESS) {
		*ret = door->address;
		ret->port = connection->local.port;
	}
	if (door->port)
		ret->port = door->port;
	return true;
}

static bool resolve_destination(struct door *door, const struct idm_snapshot *snapshot, const struct address *target,
				struct end *ret)
{
	return door->destination == DESTINATION_ENDPOINT ? resolve_name(door, snapshot, ret) :
							   resolve(snapshot, target, ret);
}

// One direction. True if the flow may go on.
static bool judge(const struct door *door, const struct idm_snapshot *snapshot, struct idm_flow *flow,
		  uint32_t direction, const struct end *subject, const struct idm_peer *peer, struct decision *ret)
{
	struct idm_verdict *verdict = &ret->verdicts[ret->count];

	if (subject->endpoint == IDM_NONE && !subject->told) {
		ret->direction = (uint8_t)direction;
		door_refuse(IDM_DROP_NO_POLICY, false, ret);
		return false;
	}
	flow->direction = direction;
	flow->endpoint = subject->endpoint;
	flow->subject_identity = subject->identity;
	flow->peer = *peer;
	ret->direction = (uint8_t)direction;
	ret->count++;
	if (idm_decide(snapshot, flow, verdict)) {
		door_refuse(IDM_DROP_POLICY_DENIED, true, ret);
		return false;
	}
	if (verdict->verdict == IDM_REDIRECTED && door->requests_follow)
		return true;
	// What is left to another proxy has none here: pass it and nobody would judge it. A server name alone, which
	// the client chooses, settles nothing about the requests that follow it.
	if (verdict->verdict == IDM_REDIRECTED || verdict->left) {
		verdict->verdict = IDM_DROPPED;
		verdict->drop_reason = IDM_DROP_PROXY_UNSUPPORTED;
		verdict->dropped_by = IDM_STAGE_KIND;
	}
	return verdict->verdict == IDM_FORWARDED || verdict->verdict == IDM_AUDIT;
}

static bool is_local(const struct idm_snapshot *snapshot, uint32_t index)
{
	const struct idm_endpoint *endpoint = view_endpoint(snapshot, index);

	return endpoint && endpoint->flags & IDM_ENDPOINT_LOCAL;
}

struct directions {
	bool egress;
	bool ingress;
};

// Egress of the source where this node enforces it, then ingress of the destination.
static struct directions directions_of(const struct door *door, const struct idm_snapshot *snapshot,
				       const struct steered *steered, const struct end *source,
				       const struct end *destination)
{
	bool egress = door->egress && (!door->ingress || is_local(snapshot, source->endpoint));

	if (steered->known)
		return (struct directions){steered->egress, steered->ingress};
	// A destination that is no endpoint has no ingress policy; egress alone has judged the flow.
	return (struct directions){egress, door->ingress && !(egress && destination->endpoint == IDM_NONE)};
}

static bool judge_directions(const struct door *door, const struct idm_snapshot *snapshot, struct idm_flow *flow,
			     struct directions directions, const struct end *source, const struct idm_peer *peer,
			     const struct end *destination, struct decision *ret)
{
	const struct idm_peer target = {.identity = destination->identity, .evidence = IDM_EVIDENCE_ADDRESS};

	if (directions.egress && !judge(door, snapshot, flow, IDM_EGRESS, source, &target, ret))
		return false;
	return !directions.ingress || judge(door, snapshot, flow, IDM_INGRESS, destination, peer, ret);
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// Endpoints' numbers can be compared within a revision; in another one the address says which it is.
static bool same_endpoint(const struct idm_snapshot *snapshot, const struct steered *told, uint32_t endpoint,
			  const struct end *found)
{
	return !told->known || told->host || told->revision != idm_snapshot_revision(snapshot) ||
	       endpoint == found->endpoint;
}

// Who connects, from all the evidence the configuration lets count.
static bool find_peer(const struct door *door, const struct idm_snapshot *snapshot, const struct connection *connection,
		      uint64_t now, struct idm_peer *peer, struct end *ret)
{
	static __thread struct idm_peer_cache cache;
	const struct steered *told = &connection->steered;
	const struct idm_peer_facts facts = {
		.family = connection->peer.family,
		.told = told->known,
		.address = connection->peer.bytes,
		.told_identity = told->source,
		.told_evidence = told->known ? IDM_EVIDENCE_DATAPATH : 0,
		.told_domain = told->domain,
		.certificate = connection->certificate,
		.now_ms = now,
	};
	struct idm_peer_rules rules = door->rules;
	uint32_t answer;

	// A process of this host may have any of its addresses, or another workload's.
	rules.address_ignored |= told->known && told->host;
	answer = idm_peer_judge(snapshot, &rules, &facts, &cache, peer, &ret->endpoint);
	ret->identity = peer->identity;
	ret->told = told->known && told->workload;
	return answer == IDM_PEER_FINE && same_endpoint(snapshot, told, told->source_endpoint, ret);
}

// The snapshot in force may know other endpoints than the one the datapath asked, but no other identity behind the
// address. Only what is the host's by its routes alone is told by the datapath and by no snapshot.
static bool confirm_destination(const struct idm_snapshot *snapshot, const struct steered *told, struct end *ret)
{
	if (!told->known)
		return true;
	if (ret->identity != told->destination && (ret->endpoint != IDM_NONE || told->destination != IDENTITY_HOST))
		return false;
	ret->identity = told->destination;
	return same_endpoint(snapshot, told, told->destination_endpoint, ret);
}

void door_decide(struct door *door, const struct idm_snapshot *snapshot, const struct connection *connection,
		 const struct address *upstream, const struct idm_http *http, struct decision *ret)
{
	struct end source = {0, IDM_NONE, false}, destination = {0, IDM_NONE, false};
	struct idm_peer peer;
	struct idm_flow flow;

	decision_init(ret);
	ret->direction = door->ingress ? IDM_INGRESS : IDM_EGRESS;
	ret->revision = snapshot ? idm_snapshot_revision(snapshot) : 0;
	if (!snapshot) {
		door_refuse(IDM_DROP_NOT_READY, false, ret);
		return;
	}
	memset(&flow, 0, sizeof(flow));
	flow.now_ms = door->rules.trust_domain.size ? now_ms() : 0;
	if (!find_peer(door, snapshot, connection, flow.now_ms, &peer, &source)) {
		ret->source = source.identity;
		door_refuse(IDM_DROP_UNKNOWN_SENDER, false, ret);
		return;
	}
	ret->source = source.identity;
	ret->source_endpoint = source.endpoint;
	ret->evidence = peer.evidence;
	ret->expiry_ms = peer.expiry_ms;
	if (!find_target(door, connection, upstream, &ret->target) ||
	    !resolve_destination(door, snapshot, &ret->target, &destination)) {
		door_refuse(IDM_DROP_NO_POLICY, false, ret);
		return;
	}
	if (!confirm_destination(snapshot, &connection->steered, &destination)) {
		door_refuse(IDM_DROP_INVALID_IDENTITY, false, ret);
		return;
	}
	ret->destination = destination.identity;
	ret->destination_endpoint = destination.endpoint;
	flow.port = ret->target.port;
	flow.flags = IDM_FLOW_ENFORCE_AUTH;
	flow.protocol = PROTOCOL_TCP;
	if (http) {
		flow.flags |= IDM_FLOW_HTTP;
		flow.http = *http;
	}
	if (connection->sni_known) {
		flow.flags |= IDM_FLOW_SNI;
		flow.sni = (struct idm_bytes){connection->sni, connection->sni_size};
	}
	ret->allowed = judge_directions(door, snapshot, &flow,
					directions_of(door, snapshot, &connection->steered, &source, &destination),
					&source, &peer, &destination, ret);
}
