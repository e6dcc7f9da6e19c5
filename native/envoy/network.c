// SPDX-License-Identifier: Apache-2.0
// The network filter: L3/L4 for protocols without a proxy of their own.
//
// It answers before any byte moves, so a denied client of a server-first protocol sees no banner: it stands before
// tcp_proxy, which connects upstream only after this filter let the connection on. Open connections are judged
// again with each new policy.
//
// The filter name "idmesh.follow" stands before an HTTP connection manager: requests are judged by the HTTP filter, one
// by one, and here a connection that a new policy denies altogether is closed, whatever is under way in it.
//
// The filter name "idmesh.handshake" judges nothing: it holds the filters behind it back until the TLS handshake is
// complete, so that set_filter_state behind it can report the client's certificate before anybody is judged.

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "counters.h"
#include "mesh.h"
#include "record.h"
#include "tally.h"

#define HANDSHAKE IDM_TEXT("idmesh.handshake")
#define FOLLOW IDM_TEXT("idmesh.follow")

struct network_config {
	bool waits;   // for the handshake, nothing else
	bool follows; // judges only what a new policy says of an open connection
	struct door door;
	size_t counters[COUNTS];
};

struct network_connection {
	struct network_config *config;
	struct envoy_network *envoy;
	struct envoy_network_scheduler *scheduler;
	struct mesh_open open;
	struct record_open record; // of an allowed one, until its end is recorded
	bool denied;
	bool waiting; // for the handshake
};

static bool define_counters(struct network_config *self, struct envoy_network_config *envoy)
{
	for (int i = 0; i < COUNTS; i++)
		if (CALLBACK(network_filter_config_define_counter)(envoy, counter_names[i], &self->counters[i]))
			return false;
	return true;
}

IDM_HOOK void ON(network_filter_config_destroy)(struct network_config *self)
{
	door_deinit(&self->door);
	free(self);
}

static bool is_named(struct idm_bytes a, struct idm_bytes b)
{
	return a.size == b.size && !memcmp(a.ptr, b.ptr, a.size);
}

IDM_HOOK void *ON(network_filter_config_new)(struct envoy_network_config *envoy, struct idm_bytes name,
					     struct idm_bytes config)
{
	struct network_config *self = calloc(1, sizeof(*self));
	struct idm_error why = {{0}};

	if (!self)
		return NULL;
	self->waits = is_named(name, HANDSHAKE);
	self->follows = is_named(name, FOLLOW);
	if (!door_init(&self->door, config, false, &why) || !mesh_required(&why) || !define_counters(self, envoy)) {
		mesh_log(ENVOY_ERROR, "network filter refused: %s",
			 why.message[0] ? why.message : "Envoy gave no stats");
		ON(network_filter_config_destroy)(self);
		return NULL;
	}
	self->door.requests_follow = self->follows;
	return self;
}

// --- deciding ---

static void count(const struct network_connection *self, const struct decision *decision)
{
	const size_t *counters = self->config->counters;

	tally_add(decision);
	CALLBACK(network_filter_increment_counter)(self->envoy, counters[counter_of(decision)], 1);
	if (counts_redirected(decision))
		CALLBACK(network_filter_increment_counter)(self->envoy, counters[COUNT_REDIRECTED], 1);
}

static bool known_connection(struct network_connection *self, struct connection *ret)
{
	struct idm_bytes bytes;

	if (!CALLBACK(network_get_filter_state_bytes)(self->envoy, MESH_KEY, &bytes) || !connection_read(bytes, ret))
		return false;
	if (self->config->door.trust_domain &&
	    CALLBACK(network_get_filter_state_bytes)(self->envoy, CERTIFICATE_KEY, &bytes))
		ret->certificate = bytes;
	return true;
}

// One verdict on the connection, and what is known of it. False: nothing is.
static bool decide(struct network_connection *self, const struct idm_snapshot *snapshot, struct connection *connection,
		   struct decision *ret)
{
	decision_init(ret);
	if (!known_connection(self, connection)) {
		door_refuse(IDM_DROP_UNKNOWN_SENDER, false, ret);
		return false;
	}
	door_decide(&self->config->door, snapshot, connection, NULL, NULL, ret);
	return true;
}

static void tell(struct network_connection *self, const struct idm_snapshot *snapshot, const struct decision *decision,
		 const uint8_t id[DECISION_ID_BYTES], bool again)
{
	struct report report;

	if (self->config->door.metadata == SHOW_NOTHING)
		return;
	report_id_text(id, report.id);
	report_fill(&report, snapshot, decision, again);
	for (size_t i = 0; i < report.count; i++)
		CALLBACK(network_set_dynamic_metadata_string)(self->envoy, MESH_KEY, report.pairs[i].key,
							      report.pairs[i].value);
}

static void record(struct network_connection *self, const struct idm_snapshot *snapshot, struct record *record,
		   bool again)
{
	struct idm_ring *ring = rings_mine();

	if (!ring)
		return;
	record->judged_ns = rings_clock();
	record->type = IDM_FLOW_CONNECTION;
	record->flags = again ? IDM_RECORD_AGAIN : 0;
	if (record->decision->allowed)
		record_begin(record, &self->record);
	record_write(ring, snapshot, record);
}

// first: the connection is new, and counts whatever the answer; later only a change of mind does.
static bool judge(struct network_connection *self, bool first)
{
	const struct idm_snapshot *snapshot = mesh_enter();
	uint8_t id[DECISION_ID_BYTES];
	struct connection connection;
	struct decision decision;
	struct record facts = {.id = id, .decision = &decision, .asked_ns = rings_clock()};

	if (decide(self, snapshot, &connection, &decision))
		facts.connection = &connection;
	if (first && decision.allowed && connection.steered.known)
		CALLBACK(network_set_socket_option_int)(self->envoy, SOL_SOCKET, SO_MARK, ENVOY_PREBIND,
							connection.steered.mark);
	if (first || !decision.allowed) {
		report_id(id);
		count(self, &decision);
		record(self, snapshot, &facts, !first);
		tell(self, snapshot, &decision, id, !first);
	}
	mesh_leave();
	mesh_open_ends(&self->open, decision.expiry_ms);
	return decision.allowed;
}

// Once: of an allowed connection.
static void end(struct network_connection *self)
{
	struct idm_ring *ring = rings_mine();

	if (ring)
		record_end(ring, IDM_FLOW_END, 0, 0, &self->record);
}

static void deny(struct network_connection *self)
{
	self->denied = true;
	CALLBACK(network_filter_close_with_details)(self->envoy, ENVOY_CLOSE_RESET, IDM_TEXT("idmesh_denied"));
}

// Main thread; Envoy carries it to the connection's worker.
static void again(void *subject)
{
	struct network_connection *self = subject;

	CALLBACK(network_filter_scheduler_commit)(self->scheduler, 0);
}

// --- hooks ---

IDM_HOOK void *ON(network_filter_new)(struct network_config *config, struct envoy_network *envoy)
{
	struct network_connection *self = calloc(1, sizeof(*self));

	if (!self)
		return NULL;
	self->config = config;
	self->envoy = envoy;
	return self;
}

IDM_HOOK void ON(network_filter_destroy)(struct network_connection *self)
{
	mesh_open_remove(&self->open);
	end(self);
	if (self->scheduler)
		CALLBACK(network_filter_scheduler_delete)(self->scheduler);
	free(self);
}

IDM_HOOK enum envoy_filter_status ON(network_filter_new_connection)(struct envoy_network *envoy,
								    struct network_connection *self)
{
	if (self->config->waits) {
		self->waiting = CALLBACK(network_filter_is_ssl)(envoy);
		return self->waiting ? ENVOY_STOP : ENVOY_CONTINUE;
	}
	// Listed before it is judged: a policy that arrives in between judges it again.
	self->scheduler = CALLBACK(network_filter_scheduler_new)(envoy);
	if (self->scheduler)
		mesh_open_add(&self->open, again, self);
	if (self->scheduler && (self->config->follows || judge(self, true)))
		return ENVOY_CONTINUE;
	deny(self);
	return ENVOY_STOP;
}

IDM_HOOK enum envoy_filter_status ON(network_filter_read)(struct envoy_network *envoy, struct network_connection *self,
							  size_t size, bool end)
{
	(void)envoy;
	(void)size;
	(void)end;
	return self->denied ? ENVOY_STOP : ENVOY_CONTINUE;
}

IDM_HOOK void ON(network_filter_event)(struct envoy_network *envoy, struct network_connection *self,
				       enum envoy_connection_event event)
{
	if (event == ENVOY_CONNECTED && self->waiting) {
		self->waiting = false;
		CALLBACK(network_filter_continue_reading)(envoy);
	}
	if (event != ENVOY_REMOTE_CLOSE && event != ENVOY_LOCAL_CLOSE)
		return;
	mesh_open_remove(&self->open);
	end(self);
}

IDM_HOOK void ON(network_filter_scheduled)(struct envoy_network *envoy, struct network_connection *self,
					   uint64_t event)
{
	(void)envoy;
	(void)event;
	if (!self->denied && self->open.next && !judge(self, false))
		deny(self);
}
