/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the verdicts of both directions to what becomes of a connection. A flow's ends are those of who opened it,
 * whichever way the packet goes, and both directions that this host enforces are judged by one revision.
 */
#ifndef IDMESH_DECIDE_H
#define IDMESH_DECIDE_H

#include "judge.h"
#include "network.h"
#include "service.h"
#include "track.h"

#define DECIDE_NO_BACKEND 158 // Hubble's number

// Of the flow, not of the packet.
static __always_inline const struct idm_address *decide_source(const struct flow *flow)
{
	return flow->reversed ? &flow->packet.destination : &flow->packet.source;
}

static __always_inline const struct idm_address *decide_destination(const struct flow *flow)
{
	return flow->reversed ? &flow->packet.source : &flow->packet.destination;
}

// The port that policy names: the destination's; of ICMP the type, of an answered echo that of the question.
static __always_inline uint16_t decide_port(const struct flow *flow)
{
	const struct packet *packet = &flow->packet;

	if (!network_is_echo(packet))
		return flow->reversed ? packet->source_port : packet->destination_port;
	// Only echo has rows, so what answers in one was asked by echo.
	if (flow->reversed || flow->error)
		return packet->kind == PACKET_IP4 ? ICMP_ECHO_REQUEST : ICMP6_ECHO_REQUEST;
	return packet->type;
}

// The higher code counts: a redirect over audit over a plain allow. A denial is looked at before.
static __always_inline void decide_merge(struct flow *flow, const struct verdict *verdict, uint8_t direction)
{
	if (verdict->code != IDM_DROPPED && verdict->code <= flow->verdict)
		return;
	flow->verdict = verdict->code;
	flow->drop_reason = verdict->drop_reason;
	flow->match_type = verdict->match_type;
	flow->direction = direction;
	flow->connection.l7 = verdict->l7;
}

static __always_inline int decide_direction(struct flow *flow, const struct end *subject, const struct end *peer,
				       uint32_t direction)
{
	struct question question = {
		.slot = flow->live.slot,
		.policy = subject->policy,
		.identity = peer->identity,
		.port = decide_port(flow),
		.protocol = flow->packet.protocol,
		.direction = direction,
	};
	struct verdict verdict;

	judge_direction(&question, &verdict);
	decide_merge(flow, &verdict, direction);
	if (direction == IDM_EGRESS) {
		flow->connection.egress_entry = verdict.entry;
		flow->connection.flags |= IDM_CONNECTION_EGRESS;
		if (verdict.code == IDM_REDIRECTED)
			flow->connection.flags |= IDM_CONNECTION_L7_EGRESS;
	} else {
		flow->connection.ingress_entry = verdict.entry;
		flow->connection.flags |= IDM_CONNECTION_INGRESS;
		if (verdict.code == IDM_REDIRECTED)
			flow->connection.flags |= IDM_CONNECTION_L7_INGRESS;
	}
	return verdict.code == IDM_DROPPED;
}

static __always_inline void decide_describe(struct flow *flow, const struct end *from, const struct end *to, bool host)
{
	struct idm_connection *connection = &flow->connection;

	connection->generation = flow->live.generation;
	connection->revision = flow->live.revision;
	connection->source_identity = from->identity;
	connection->source_endpoint = from->endpoint;
	connection->source_ifindex = from->ifindex;
	connection->destination_identity = to->identity;
	connection->destination_endpoint = to->endpoint;
	connection->destination_ifindex = to->ifindex;
	connection->egress_entry = IDM_NO_INDEX;
	connection->ingress_entry = IDM_NO_INDEX;
	connection->flags = flow->high != flow->reversed ? IDM_CONNECTION_SOURCE_HIGH : 0;
	if (host)
		connection->flags |= IDM_CONNECTION_HOST;
}

/* The process of this host that opened a connection: its identity. 0: none did. */
static __always_inline uint32_t decide_opener(const struct idm_connection *row)
{
	if (row->flags & IDM_CONNECTION_CGROUP)
		return row->source_identity;
	return row->flags & IDM_CONNECTION_HOST ? lookup_host() : 0;
}

/*
 * Who opened a flow, where not its address says so: a process of this host. Envoy's own connection for a workload
 * without a namespace is judged by that workload's policy, as the tables have it now; nobody looks at it where it sends.
 */
static __always_inline void decide_process(const struct flow *flow, uint32_t opener, struct end *ret)
{
	uint32_t token = flow->connection.token;
	const struct idm_grant *grant;

	lookup_nobody(ret, opener);
	if (flow->key.leg != IDM_LEG_PROXY || opener == lookup_host())
		return;
	grant = steer_find_grant(token);
	// Forgotten: for whom Envoy speaks there is nobody to say, and nobody may do nothing.
	if (!grant || grant->identity != opener) {
		ret->identity = 0;
		return;
	}
	lookup_end(&flow->live, &grant->source, packet_is_mapped(&grant->source) ? PACKET_IP4 : PACKET_IP6, ret);
}

/*
 * Judge the flow that the packet is of: fills flow->connection and the verdict that counts.
 * opener: identity of the process of this host that opened it, the host's or that of a workload without a namespace,
 * whose own programs judge what it sends; 0: whoever has the address.
 */
PACKET_GLOBAL int decide_flow(struct flow *flow, uint32_t opener)
{
	const struct packet *packet;
	struct end from, to;

	if (!flow)
		return IDM_DROP_NOT_READY;
	packet = &flow->packet;
	// A process of this host is the host, whatever address it took.
	if (opener)
		decide_process(flow, opener, &from);
	else
		lookup_end(&flow->live, decide_source(flow), packet->kind, &from);
	lookup_end(&flow->live, decide_destination(flow), packet->kind, &to);
	// Only Envoy connects there for others: a workload without a namespace has the host's loopback.
	if (flow->key.leg == IDM_LEG_PROXY && packet_is_loopback(&packet->destination))
		lookup_nobody(&to, lookup_host());
	decide_describe(flow, &from, &to, opener);
	if (opener && opener != lookup_host())
		flow->connection.flags |= IDM_CONNECTION_CGROUP;
	flow->verdict = 0;
	flow->drop_reason = 0;
	if (from.enforced && decide_direction(flow, &from, &to, IDM_EGRESS))
		return 0;
	if (to.enforced)
		decide_direction(flow, &to, &from, IDM_INGRESS);
	// No side of this flow is enforced here: not ours to deny, unless nobody here should have seen it.
	if (!flow->verdict) {
		flow->verdict = IDM_DROPPED;
		flow->drop_reason = IDM_DROP_NO_POLICY;
	}
	return 0;
}

/* Judge a connection again that stands. */
static __always_inline void decide_again(struct flow *flow, const struct idm_connection *row)
{
	flow->connection.token = row->token;
	decide_flow(flow, decide_opener(row));
	// Whose token it will be is settled with the answer.
	flow->connection.token = 0;
}

// Envoy has the client's address; for a workload without a namespace it may have any that such a one sends from.
static __noinline __attribute__((unused)) bool decide_may_speak(const struct flow *flow, const struct idm_grant *grant)
{
	const struct idm_address *source = decide_source(flow);
	struct end end;

	if (packet_same_address(source, &grant->source))
		return true;
	if (!(grant->flags & IDM_CONNECTION_CGROUP))
		return false;
	if (packet_is_nobody(source, flow->packet.kind))
		return packet_is_loopback(source);
	lookup_end(&flow->live, source, flow->packet.kind, &end);
	return end.identity == grant->identity || end.identity == lookup_host();
}

// No policy of egress: whoever is behind an address, it may be reached.
static __always_inline bool decide_may_all(const struct flow *flow)
{
	const struct idm_endpoint_row *own = lookup_endpoint(&flow->live, decide_source(flow));
	const struct idm_side_row *side = NULL;

	if (own && own->policy != IDM_NO_INDEX)
		side = judge_side(flow->live.slot, own->policy * 2 + IDM_EGRESS);
	// A miss: not known well enough to be let past.
	return side && side->flags & IDM_SIDE_ROW_OPEN && !(side->flags & IDM_SIDE_ROW_ISOLATED);
}

/*
 * A Service's own address, where sockets of a workload whose cgroup is known were given a backend's. Behind it is whom
 * a NAT of the host chooses, and policy judged nobody but the address.
 */
static __noinline bool decide_is_service(const struct flow *flow)
{
	const struct idm_connection *connection = &flow->connection;
	struct idm_service_key asked = {.protocol = flow->packet.protocol};

	if (!connection->source_ifindex || connection->destination_endpoint != IDM_NO_INDEX)
		return false;
	asked.address = *decide_destination(flow);
	asked.port = flow->reversed ? flow->packet.source_port : flow->packet.destination_port;
	return service_is_front(&asked) && !decide_may_all(flow);
}

/*
 * A connection of Envoy's own that has no row: judged for the client of the token, as the revision in force has it.
 * Returns a drop reason, or 0 with the row to be in flow->connection. flow->reversed is the caller's to set.
 */
static __always_inline int decide_granted(struct flow *flow, uint32_t token)
{
	const struct idm_grant *grant = steer_find_grant(token);
	struct idm_connection *connection = &flow->connection;
	uint32_t identity, flags;

	// No grant: a token that was never given, or that is forgotten. Envoy speaks for nobody.
	if (!grant || !decide_may_speak(flow, grant))
		return IDM_DROP_UNKNOWN_SENDER;
	identity = grant->identity;
	flags = grant->flags;
	connection->token = token;
	decide_flow(flow, flags & IDM_CONNECTION_CGROUP ? identity : flags & IDM_CONNECTION_HOST ? lookup_host() : 0);
	flow->judged = 1;
	if (flow->verdict == IDM_DROPPED)
		return flow->drop_reason ? flow->drop_reason : IDM_DROP_POLICY_DENIED;
	if (connection->source_identity != identity)
		return IDM_DROP_INVALID_IDENTITY;
	if (decide_is_service(flow))
		return DECIDE_NO_BACKEND;
	connection->verdict = IDM_REDIRECTED;
	return 0;
}

static __always_inline bool decide_can_steer(const struct flow *flow, bool known)
{
	const struct idm_config *row = lookup_config();

	if (!row || flow->packet.protocol != IPPROTO_TCP)
		return false;
	// An answer that nobody asked for has no connection that Envoy could accept.
	if (!known && flow->packet.flags & PACKET_ANSWERS)
		return false;
	return row->proxy_port || (flow->packet.kind == PACKET_IP6 && row->proxy_port6);
}

// A connection that Envoy holds stays there; what it may do is judged there too.
static __always_inline void decide_keep(struct flow *flow, const struct idm_connection *row)
{
	struct idm_connection *connection = &flow->connection;

	// Whoever has the client's address now, Envoy does not speak for by the token of the one before.
	connection->token = row->source_identity == connection->source_identity ? row->token : 0;
	if (flow->verdict != IDM_REDIRECTED) {
		connection->l7 = row->l7;
		connection->flags |= row->flags & (IDM_CONNECTION_L7_EGRESS | IDM_CONNECTION_L7_INGRESS);
	}
	connection->verdict = IDM_REDIRECTED;
}

// Whether Envoy has it, or had it before policy denied it.
static __always_inline bool decide_is_held(const struct idm_connection *row)
{
	return row->verdict == IDM_REDIRECTED || (row->verdict == IDM_DROPPED && row->token);
}

/*
 * What a verdict means for a connection that may already stand (row, or NULL). Returns a drop reason, or 0 with the
 * verdict to carry out in flow->connection.
 */
static __noinline __attribute__((unused)) int decide_settle(struct flow *flow, struct idm_connection *row)
{
	int reason = 0;

	if (flow->verdict == IDM_DROPPED)
		reason = flow->drop_reason ? flow->drop_reason : IDM_DROP_POLICY_DENIED;
	else if (decide_is_service(flow))
		reason = DECIDE_NO_BACKEND;
	// Envoy's connection was made for this client; who has its address now is somebody else.
	else if (flow->key.leg == IDM_LEG_PROXY && (!row || row->source_identity != flow->connection.source_identity))
		reason = IDM_DROP_INVALID_IDENTITY;
	// Steered from now on: it cannot be put into Envoy midway, the client has to begin again. Nor later, once it is
	// remembered as denied: a server on this host still has its socket, which would get what is meant for Envoy.
	else if (flow->verdict == IDM_REDIRECTED && row && !decide_is_held(row))
		reason = IDM_DROP_PROXY_UNSUPPORTED;
	else if (flow->verdict == IDM_REDIRECTED && !decide_can_steer(flow, row))
		reason = IDM_DROP_PROXY_UNSUPPORTED;
	if (reason) {
		if (row)
			track_bury(flow, row);
		return reason;
	}
	flow->connection.verdict = flow->verdict;
	if (flow->key.leg == IDM_LEG_PROXY || (row && row->verdict == IDM_REDIRECTED)) {
		if (row)
			decide_keep(flow, row);
	}
	return 0;
}

/* Keep what was decided: in the row that stands, or in a new one. */
static __always_inline int decide_write(struct flow *flow, struct idm_connection *row)
{
	if (row) {
		track_renew(flow, row);
		track_touch(flow, row);
		return 0;
	}
	// An answer without its question, and ICMP that is no echo, are judged one by one.
	if (flow->packet.flags & (PACKET_UNTRACKED | PACKET_ANSWERS))
		return 0;
	return track_open(flow);
}

#endif
