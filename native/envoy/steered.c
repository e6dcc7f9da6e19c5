// SPDX-License-Identifier: Apache-2.0
// Reads the datapath's maps by the system call itself: the module links no libbpf.

#include "steered.h"

#include <errno.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "idmesh/datapath.h"

#define PROTOCOL_TCP 6
#define STATE "state"
#define CONNECTIONS "connections"

// What is pinned in the folder at one time. Never changed once others see it, and kept to the end: a worker may be
// reading from it.
struct pinned {
	struct pinned *older;
	int state;
	int connections;
	dev_t device; // of the pin of `connections`, by which a new one is told
	ino_t inode;
};

struct steered_maps {
	char *pins;
	pthread_mutex_t opening;
	struct pinned *newest; // atomic
};

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

static bool join(const char *pins, const char *name, char *ret, size_t size)
{
	return (size_t)snprintf(ret, size, "%s/%s", pins, name) < size;
}

static int open_map(const char *pins, const char *name, uint32_t key_size, uint32_t value_size, struct idm_error *why)
{
	char path[4096];
	int map;

	if (!join(pins, name, path, sizeof(path))) {
		snprintf(why->message, sizeof(why->message), "datapath: the path is too long");
		return -1;
	}
	map = open_pin(path);
	if (map < 0) {
		snprintf(why->message, sizeof(why->message), "datapath: %.150s: %s", path, strerror(errno));
		return -1;
	}
	if (has_shape(map, key_size, value_size))
		return map;
	snprintf(why->message, sizeof(why->message), "datapath: %.150s: not a map of this layout", path);
	close(map);
	return -1;
}

static bool layout_fits(const struct pinned *pinned, struct idm_error *why)
{
	struct idm_state now;
	uint32_t row = 0;

	// Nothing is published yet: whoever publishes writes the layout, and connections are closed until then.
	if (lookup(pinned->state, &row, &now) && (!now.generation || now.layout == IDM_LAYOUT))
		return true;
	snprintf(why->message, sizeof(why->message), "datapath: the maps are of another layout than this module");
	return false;
}

static void pinned_destroy(struct pinned *pinned)
{
	if (pinned->state >= 0)
		close(pinned->state);
	if (pinned->connections >= 0)
		close(pinned->connections);
	free(pinned);
}

static bool look(const char *pins, struct stat *ret)
{
	char path[4096];

	return join(pins, CONNECTIONS, path, sizeof(path)) && !stat(path, ret);
}

static struct pinned *pinned_create(const char *pins, struct idm_error *why)
{
	struct pinned *made = calloc(1, sizeof(*made));
	struct stat pin = {0};

	if (!made)
		return NULL;
	// Looked at before it is opened: one that comes in between is seen the next time.
	look(pins, &pin);
	made->device = pin.st_dev;
	made->inode = pin.st_ino;
	made->connections = -1;
	made->state = open_map(pins, STATE, sizeof(uint32_t), sizeof(struct idm_state), why);
	if (made->state >= 0)
		made->connections = open_map(pins, CONNECTIONS, sizeof(struct idm_connection_key),
					     sizeof(struct idm_connection), why);
	if (made->connections >= 0 && layout_fits(made, why))
		return made;
	pinned_destroy(made);
	return NULL;
}

struct steered_maps *steered_open(const char *pins, struct idm_error *why)
{
	struct steered_maps *maps = calloc(1, sizeof(*maps));

	if (!maps)
		return NULL;
	pthread_mutex_init(&maps->opening, NULL);
	maps->pins = strdup(pins);
	maps->newest = maps->pins ? pinned_create(pins, why) : NULL;
	if (maps->newest)
		return maps;
	steered_close(maps);
	return NULL;
}

void steered_close(struct steered_maps *maps)
{
	struct pinned *older;

	if (!maps)
		return;
	for (struct pinned *pinned = maps->newest; pinned; pinned = older) {
		older = pinned->older;
		pinned_destroy(pinned);
	}
	pthread_mutex_destroy(&maps->opening);
	free(maps->pins);
	free(maps);
}

// True if there are other maps now than `known`. What cannot be opened leaves those that were.
static bool renew(struct steered_maps *maps, const struct pinned *known)
{
	struct idm_error why;
	struct pinned *made;
	struct stat pin;
	bool changed;

	pthread_mutex_lock(&maps->opening);
	changed = maps->newest != known;
	if (!changed && look(maps->pins, &pin) && (pin.st_dev != known->device || pin.st_ino != known->inode)) {
		made = pinned_create(maps->pins, &why);
		if (made) {
			made->older = maps->newest;
			__atomic_store_n(&maps->newest, made, __ATOMIC_RELEASE);
			changed = true;
		}
	}
	pthread_mutex_unlock(&maps->opening);
	return changed;
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

static bool find(const struct pinned *pinned, const struct address *peer, const struct address *local,
		 struct steered *ret)
{
	struct idm_connection_key key;
	struct idm_connection row;
	struct idm_state now;
	uint32_t only = 0;
	bool high = make_key(peer, local, &key);

	if (!lookup(pinned->state, &only, &now) || !now.generation || now.layout != IDM_LAYOUT ||
	    !lookup(pinned->connections, &key, &row) || !usable(&row, high))
		return false;
	fill(&now, &row, ret);
	return true;
}

bool steered_find(struct steered_maps *maps, const struct address *peer, const struct address *local,
		  struct steered *ret)
{
	const struct pinned *pinned;

	if (!maps)
		return false;
	pinned = __atomic_load_n(&maps->newest, __ATOMIC_ACQUIRE);
	if (find(pinned, peer, local, ret))
		return true;
	return renew(maps, pinned) &&
	       find(__atomic_load_n(&maps->newest, __ATOMIC_ACQUIRE), peer, local, ret);
}
