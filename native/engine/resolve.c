/* SPDX-License-Identifier: Apache-2.0 */
/* From addresses to identities: exact addresses by hash, everything else by the range that holds it. */
#include <errno.h>

#include "resolve.h"

uint32_t idm_identity_find(const struct idm_identities *identities, uint32_t id)
{
	uint32_t low = 0, high = identities->identity_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (identities->identities[middle].id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return low < identities->identity_count && identities->identities[low].id == id ? low : IDM_NONE;
}

const struct idm_host *idm_host_find(const struct idm_identities *table, uint8_t family, const uint8_t *address)
{
	uint32_t mask = table->host_count - 1;
	uint32_t limit = table->meta->host_probe_max;
	uint64_t hash;

	if (!table->host_count)
		return NULL;
	if (limit > table->host_count)
		limit = table->host_count;
	hash = idm_hash64(family, address, 16);
	for (uint32_t i = 0; i < limit; i++) {
		const struct idm_host *host = &table->hosts[(hash + i) & mask];

		if (!host->family)
			return NULL;
		if (host->family == family && memcmp(host->address, address, 16) == 0)
			return host;
	}
	return NULL;
}

static uint32_t range4_identity(const struct idm_identities *table, const uint8_t *address)
{
	uint32_t low = 0, high = table->range4_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (memcmp(table->ranges4[middle].first, address, 4) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low ? table->ranges4[low - 1].identity : table->meta->world4;
}

static uint32_t range6_identity(const struct idm_identities *table, const uint8_t *address)
{
	uint32_t low = 0, high = table->range6_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (memcmp(table->ranges6[middle].first, address, 16) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low ? table->ranges6[low - 1].identity : table->meta->world6;
}

int idm_resolve(const struct idm_snapshot *snapshot, int family, const uint8_t *address, uint32_t *identity,
		uint32_t *endpoint)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
	const struct idm_identities *table = idm_identities(snapshot);
	const struct idm_host *host;
	uint8_t key[16] = {0};

	if (family != 4 && family != 6)
		return -EINVAL;
	// A dual stack socket shows IPv4 peers as ::ffff:a.b.c.d; they are the same peers.
	if (family == 6 && memcmp(address, mapped, sizeof(mapped)) == 0) {
		family = 4;
		address += sizeof(mapped);
	}
	memcpy(key, address, family == 4 ? 4 : 16);
	host = idm_host_find(table, (uint8_t)family, key);
	if (host)
		*identity = host->identity;
	else
		*identity = family == 4 ? range4_identity(table, key) : range6_identity(table, key);
	*endpoint = host ? host->endpoint : IDM_NONE;
	return 0;
}
