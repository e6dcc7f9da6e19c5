/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who an address is, in the revision that a packet is judged by. That revision is read once, as one word, and every
 * later lookup names its slot.
 */
#ifndef IDMESH_LOOKUP_H
#define IDMESH_LOOKUP_H

#include "packet.h"

// Two tables, two calls: with one call that takes either, the kernel cannot put the lookup in line.
#define LOOKUP_SLOT(NAME, SLOT, KEY)                                          \
	({                                                                    \
		void *row_;                                                   \
		if (SLOT) {                                                   \
			row_ = bpf_map_lookup_elem(&NAME##_1, (KEY));         \
			asm volatile("" : "+r"(row_));                        \
		} else {                                                      \
			row_ = bpf_map_lookup_elem(&NAME##_0, (KEY));         \
		}                                                             \
		row_;                                                         \
	})

#define LOOKUP_ADDRESS_BITS 128

struct live {
	uint64_t revision;
	uint32_t generation;
	uint32_t slot;
	uint32_t world4;
	uint32_t world6;
};

/* The revision in force. False: there is none, or it is closed; nothing may pass (203). */
static __always_inline bool lookup_live(struct live *live)
{
	uint32_t first = 0;
	const struct idm_state *state_row = bpf_map_lookup_elem(&state, &first);

	// The row always exists; the verifier wants to see it asked.
	if (!state_row)
		return false;
	live->generation = *(const volatile uint32_t *)&state_row->generation;
	live->slot = live->generation & 1;
	live->revision = live->slot ? state_row->revision[1] : state_row->revision[0];
	live->world4 = live->slot ? state_row->world4[1] : state_row->world4[0];
	live->world6 = live->slot ? state_row->world6[1] : state_row->world6[0];
	if (!live->generation || state_row->layout != IDM_LAYOUT)
		return false;
	return !(live->slot ? state_row->closed[1] : state_row->closed[0]);
}

static __always_inline const struct idm_config *lookup_config(void)
{
	uint32_t first = 0;

	return bpf_map_lookup_elem(&config, &first);
}

static __always_inline const struct idm_endpoint_row *lookup_endpoint(const struct live *live,
								      const struct idm_address *address)
{
	return LOOKUP_SLOT(endpoints, live->slot, address);
}

/* One end of a connection. */
struct end {
	uint32_t identity;
	uint32_t endpoint;
	uint32_t policy;
	uint32_t ifindex;
	uint32_t enforced; // its policy is enforced on this host
};

static __always_inline void lookup_nobody(struct end *end, uint32_t identity)
{
	end->identity = identity;
	end->endpoint = IDM_NO_INDEX;
	end->policy = IDM_NO_INDEX;
	end->ifindex = 0;
	end->enforced = 0;
}

static __always_inline uint32_t lookup_host(void)
{
	const struct idm_config *row = lookup_config();

	return row && row->host_identity ? row->host_identity : 1;
}

// An address that is no endpoint's: the host's own, a CIDR's, or else the world's.
static __always_inline uint32_t lookup_outside(const struct live *live, const struct idm_address *address,
					       uint8_t kind)
{
	struct idm_prefix_key key = {.bits = LOOKUP_ADDRESS_BITS, .address = *address};
	const struct idm_prefix_row *prefix;

	// Link-local is whoever is on the cable; at our end of it is the host.
	if (bpf_map_lookup_elem(&locals, address) || (kind == PACKET_IP6 && packet_is_link_local(address)))
		return lookup_host();
	prefix = LOOKUP_SLOT(prefixes, live->slot, &key);
	return prefix ? prefix->identity : kind == PACKET_IP4 ? live->world4 : live->world6;
}

static __always_inline void lookup_end(const struct live *live, const struct idm_address *address, uint8_t kind,
				       struct end *end)
{
	const struct idm_endpoint_row *row = lookup_endpoint(live, address);

	if (!row) {
		lookup_nobody(end, lookup_outside(live, address, kind));
		return;
	}
	end->identity = row->identity;
	end->endpoint = row->endpoint;
	end->policy = row->policy;
	end->ifindex = row->ifindex;
	end->enforced = row->flags & IDM_ENDPOINT_ROW_LOCAL || row->policy != IDM_NO_INDEX || row->ifindex;
}

#endif
