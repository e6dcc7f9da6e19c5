/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backend stands for a Service's address, and which address a backend stood for.
 *
 * Translation happens where a socket names its peer, before there is a packet. Packets then carry the backend's address
 * and port from the first one on: policy sees the backend, and nothing is rewritten on the way.
 *
 * The loader never changes a backend row that a service names: it writes a new run of rows, then the service's row, and
 * uses the old run again after a grace period. What is left of races is caught here: a row says whose it is.
 */
#ifndef IDMESH_SERVICE_H
#define IDMESH_SERVICE_H

#include "maps.h"
#include <bpf/bpf_endian.h>

// Backends that affinity looks through; a client whose backend stands further behind may get another one.
#define SERVICE_AFFINITY_SEARCH 4096
#define SERVICE_MPTCP 262
// A row that changes between two looks is looked at again, this often.
#define SERVICE_LOOKS 4

enum service_answer {
	SERVICE_NONE, // no service has this address and port: as asked
	SERVICE_GIVEN,
	SERVICE_REFUSED, // a service without backends, or none that could be read whole
};

struct service_search {
	const struct idm_backend *wanted;
	uint32_t first;
	uint32_t found;
};

static __always_inline int service_same_address(const struct idm_address *one, const struct idm_address *two)
{
	const uint64_t *left = (const void *)one, *right = (const void *)two;

	return left[0] == right[0] && left[1] == right[1];
}

static __always_inline int service_is_mapped(const struct idm_address *address)
{
	const uint32_t *words = (const void *)address;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

/* The unspecified address of the same IP version: stands for every address of the host in rows of NodePorts. */
static __always_inline struct idm_address service_any(const struct idm_address *address)
{
	struct idm_address any = {};

	if (service_is_mapped(address))
		any.bytes[10] = any.bytes[11] = 0xff;
	return any;
}

/* True if a service has this address and port, with or without backends. */
static __always_inline bool service_is_front(const struct idm_service_key *asked)
{
	struct idm_service_key key = *asked;

	if (bpf_map_lookup_elem(&services, &key))
		return true;
	// A miss: it may be the host's, and a NodePort there.
	if (!bpf_map_lookup_elem(&locals, &key.address))
		return false;
	key.address = service_any(&asked->address);
	return bpf_map_lookup_elem(&services, &key);
}

/* The row of a service: of the address itself, or a NodePort if the address is the host's. 0: there is none. */
static __always_inline int service_find(const struct idm_service_key *asked, struct idm_service *ret)
{
	struct idm_address any = service_any(&asked->address);
	struct idm_service_key key = *asked;
	const struct idm_service *row;

	// connect() to 0.0.0.0 or :: means the own loopback, not the row of a NodePort.
	if (service_same_address(&key.address, &any))
		return 0;
	row = bpf_map_lookup_elem(&services, &key);
	if (!row && bpf_map_lookup_elem(&locals, &key.address)) {
		key.address = any;
		row = bpf_map_lookup_elem(&services, &key);
	}
	if (!row)
		return 0; // A miss: most addresses are no service's.
	// The kernel may give a replaced row to another key at once: a second look must say the same.
	for (int i = 0; i < SERVICE_LOOKS && row; i++) {
		*ret = *row;
		row = bpf_map_lookup_elem(&services, &key);
		if (row && row->id == ret->id && row->first_backend == ret->first_backend &&
		    row->backend_count == ret->backend_count)
			return 1;
	}
	ret->backend_count = 0; // it is being removed, or never rests
	return 1;
}

static __always_inline int service_backend(const struct idm_service *service, uint32_t position,
					   struct idm_backend *ret)
{
	uint32_t index = service->first_backend + position;
	const struct idm_backend *row = bpf_map_lookup_elem(&backends, &index);

	if (!row)
		return 0;
	*ret = *row;
	return ret->service == service->id;
}

static __attribute__((unused)) long service_compare(uint32_t position, struct service_search *search)
{
	uint32_t index = search->first + position;
	const struct idm_backend *row = bpf_map_lookup_elem(&backends, &index);

	search->found = row && row->service == search->wanted->service && row->port == search->wanted->port &&
			service_same_address(&row->address, &search->wanted->address);
	return search->found;
}

/* The backend that a client had, if it may keep it: not too long ago, and still one of the service's. */
static __always_inline int service_kept(const struct idm_service *service, const struct idm_affinity_key *key,
					uint32_t now_s, struct idm_backend *ret)
{
	struct idm_affinity *row = bpf_map_lookup_elem(&affinity, key);
	uint32_t count = service->backend_count;
	struct service_search search = { .first = service->first_backend };

	if (!row || now_s - row->seen_s > service->affinity_s)
		return 0; // A miss: a new client, one that was away, or one that the map forgot. It gets any backend.
	*ret = row->backend;
	search.wanted = ret;
	if (count > SERVICE_AFFINITY_SEARCH)
		count = SERVICE_AFFINITY_SEARCH;
	bpf_loop(count, service_compare, &search, 0);
	return search.found;
}

static __always_inline int service_fits(const struct idm_service_key *asked, const struct idm_backend *backend)
{
	return backend->protocol == asked->protocol && backend->port &&
	       service_is_mapped(&backend->address) == service_is_mapped(&asked->address);
}

/*
 * dice: any number; the same one gives the same backend as long as the service stays the same.
 * client: who asks, for affinity.
 */
static __always_inline enum service_answer service_choose(const struct idm_service_key *asked, uint32_t dice,
							  const struct idm_address *client, struct idm_service *service,
							  struct idm_backend *ret)
{
	struct idm_affinity_key key = {};
	struct idm_affinity kept = {};
	int found = 0;

	if (!service_find(asked, service))
		return SERVICE_NONE;
	if (!service->backend_count)
		return SERVICE_REFUSED;
	if (service->affinity_s) {
		key.client = *client;
		key.service = service->id;
		kept.seen_s = bpf_ktime_get_boot_ns() / 1000000000;
		found = service_kept(service, &key, kept.seen_s, ret);
	}
	if (!found && !service_backend(service, dice % service->backend_count, ret))
		return SERVICE_REFUSED;
	if (!service_fits(asked, ret))
		return SERVICE_REFUSED;
	if (service->affinity_s) {
		kept.backend = *ret;
		bpf_map_update_elem(&affinity, &key, &kept, 0);
	}
	return SERVICE_GIVEN;
}

/* So that the socket hears of its peer by the address that it asked for. */
static __always_inline void service_remember(uint64_t cookie, const struct idm_service_key *asked,
					     const struct idm_backend *given)
{
	struct idm_translation_key key = { .cookie = cookie, .backend = given->address, .port = given->port };
	struct idm_translation row = { .address = asked->address, .port = asked->port, .service = given->service };

	bpf_map_update_elem(&translations, &key, &row, 0);
}

/* What the socket asked for when it got this peer, or NULL: its peer is no backend. */
static __always_inline const struct idm_translation *service_asked(uint64_t cookie, const struct idm_address *peer,
								    uint16_t port)
{
	struct idm_translation_key key = { .cookie = cookie, .backend = *peer, .port = port };

	return bpf_map_lookup_elem(&translations, &key);
}

#endif
