// SPDX-License-Identifier: Apache-2.0
// Reads the datapath's maps by the system call itself: the module links no libbpf.

#include "steered.h"

#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "idmesh/datapath.h"

#define PROTOCOL_TCP 6

static long ask(enum bpf_cmd command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

static bool lookup(int map, const void *key, void *ret)
{
	union bpf_attr attributes;

	memset(&attributes, 0, sizeof(attributes));
	attributes.map_fd = (uint32_t)map;
	attributes.key = (uintptr_t)key;
	attributes.value = (uintptr_t)ret;
	return !ask(BPF_MAP_LOOKUP_ELEM, &attributes);
}

// ---- maps ----

static int open_pin(const char *path)
{
	union bpf_attr attributes;

	memset(&attributes, 0, sizeof(attributes));
	attributes.pathname = (uintptr_t)path;
	attributes.file_flags = BPF_F_RDONLY;
	return (int)ask(BPF_OBJ_GET, &attributes);
}

static bool has_shape(int map, uint32_t key_size, uint32_t value_size)
{
	struct bpf_map_info info = {0};
	union bpf_attr attributes;

	memset(&attributes, 0, sizeof(attributes));
	attributes.info.bpf_fd = (uint32_t)map;
	attributes.info.info_len = sizeof(info);
	attributes.info.info = (uintptr_t)&info;
	return !ask(BPF_OBJ_GET_INFO_BY_FD, &attributes) && info.key_size == key_size && info.value_size == value_size;
}

static bool open_map(const char *pins, const char *name, uint32_t key_size, uint32_t value_size, int *ret,
		     struct idm_error *why)
{
	char path[4096];

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", pins, name) >= sizeof(path)) {
		snprintf(why->message, sizeof(why->message), "datapath: the path is too long");
		return false;
	}
	*ret = open_pin(path);
	if (*ret < 0) {
		snprintf(why->message, sizeof(why->message), "datapath: %.150s: %s", path, strerror(errno));
		return false;
	}
	if (has_shape(*ret, key_size, value_size))
		return true;
	snprintf(why->message, sizeof(why->message), "datapath: %.150s: not a map of this layout", path);
	return false;
}

static bool layout_fits(const struct steered_maps *maps, struct idm_error *why)
{
	struct idm_state now;
	uint32_t row = 0;

	// Nothing is published yet: whoever publishes writes the layout, and connections are closed until then.
	if (lookup(maps->state, &row, &now) && (!now.generation || now.layout == IDM_LAYOUT))
		return true;
	snprintf(why->message, sizeof(why->message), "datapath: the maps are of another layout than this module");
	return false;
}

bool steered_open(const char *pins, struct steered_maps *ret, struct idm_error *why)
{
	*ret = (struct steered_maps){-1, -1};
	if (open_map(pins, "state", sizeof(uint32_t), sizeof(struct idm_state), &ret->state, why) &&
	    open_map(pins, "connections", sizeof(struct idm_connection_key), sizeof(struct idm_connection),
		     &ret->connections, why) &&
	    layout_fits(ret, why))
		return true;
	steered_close(ret);
	return false;
}

void steered_close(struct steered_maps *maps)
{
	if (maps->state >= 0)
		close(maps->state);
	if (maps->connections >= 0)
		close(maps->connections);
	*maps = (struct steered_maps){-1, -1};
}

// ---- rows ----

static struct idm_address in_map(const struct address *address)
{
	struct idm_address ret = {{0}};

	if (address->family == 6) {
		memcpy(ret.bytes, address->bytes, 16);
		return ret;
	}
	ret.bytes[10] = ret.bytes[11] = 0xff;
	memcpy(ret.bytes + 12, address->bytes, 4);
	return ret;
}

// True if the client is the high end.
static bool make_key(const struct address *peer, const struct address *local, struct idm_connection_key *ret)
{
	struct idm_address from = in_map(peer), to = in_map(local);
	int order = memcmp(&from, &to, sizeof(from));
	bool high = order > 0 || (!order && peer->port > local->port);

	memset(ret, 0, sizeof(*ret));
	ret->low = high ? to : from;
	ret->high = high ? from : to;
	ret->low_port = high ? local->port : peer->port;
	ret->high_port = high ? peer->port : local->port;
	ret->protocol = PROTOCOL_TCP;
	ret->leg = IDM_LEG_CLIENT;
	return high;
}

// Opened by this client, steered, with somebody on this host whose policy counts.
static bool usable(const struct idm_connection *row, bool client_high)
{
	bool source_high = row->flags & IDM_CONNECTION_SOURCE_HIGH;

	return row->verdict == IDM_REDIRECTED && row->token && row->token <= IDM_TOKEN_MAX &&
	       source_high == client_high && row->flags & (IDM_CONNECTION_EGRESS | IDM_CONNECTION_INGRESS);
}

static void fill(const struct idm_state *now, const struct idm_connection *row, struct steered *ret)
{
	*ret = (struct steered){
		.domain = now->domain,
		.revision = row->revision,
		.source = row->source_identity,
		.destination = row->destination_identity,
		.source_endpoint = row->source_endpoint,
		.destination_endpoint = row->destination_endpoint,
		.mark = IDM_TOKEN_MARK(row->token),
		.known = 1,
		.l7 = row->l7,
		.egress = row->flags & IDM_CONNECTION_EGRESS,
		.ingress = row->flags & IDM_CONNECTION_INGRESS,
		.host = row->flags & IDM_CONNECTION_HOST,
		.workload = row->flags & IDM_CONNECTION_CGROUP,
	};
}

bool steered_find(const struct steered_maps *maps, const struct address *peer, const struct address *local,
		  struct steered *ret)
{
	struct idm_connection_key key;
	struct idm_connection row;
	struct idm_state now;
	uint32_t only = 0;
	bool high = make_key(peer, local, &key);

	if (!lookup(maps->state, &only, &now) || !now.generation || now.layout != IDM_LAYOUT ||
	    !lookup(maps->connections, &key, &row) || !usable(&row, high))
		return false;
	fill(&now, &row, ret);
	return true;
}
