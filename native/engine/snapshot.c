/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading: header, directory, then each table into private memory and checked there, so that nobody can change what
 * was checked. A table equal to one of the previous snapshot is not checked again but shared.
 */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "kept.h"

static const char *const table_names[IDM_TABLE_COUNT] = {"identities", "selectors", "policies"};

static void table_ref(struct idm_table *table)
{
	atomic_fetch_add_explicit(&table->refs, 1, memory_order_relaxed);
}

static void table_unref(struct idm_table *table)
{
	if (!table || atomic_fetch_sub_explicit(&table->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (table->kind == IDM_TABLE_POLICIES) {
		free(table->policies.http_reads);
		idm_kept_destroy(table->policies.kept);
	}
	if (table->data) {
		// Values of Secrets live here.
		explicit_bzero(table->data, table->size);
		free(table->data);
	}
	free(table);
}

static int check_table(struct idm_table *table, struct idm_error *err)
{
	struct idm_check check = {
		.table = table_names[table->kind - 1],
		.data = table->data,
		.size = table->size,
		.err = err,
	};
	int r;

	switch (table->kind) {
	case IDM_TABLE_IDENTITIES:
		r = idm_check_identities(&check, &table->identities);
		break;
	case IDM_TABLE_SELECTORS:
		r = idm_check_selectors(&check, &table->selectors);
		break;
	default:
		r = idm_check_policies(&check, &table->policies);
	}
	return r == -ENOMEM ? idm_fail(err, r, "table %s: out of memory", check.table) : r;
}

static int table_create(const struct idm_table_ref *ref, const uint8_t *bytes, struct idm_table **ret,
			struct idm_error *err)
{
	struct idm_table *table = calloc(1, sizeof(*table));
	size_t room = ((size_t)ref->size + 63) / 64 * 64;
	int r;

	if (!table)
		return idm_fail(err, -ENOMEM, "out of memory");
	atomic_init(&table->refs, 1);
	table->kind = ref->kind;
	table->crc32 = ref->crc32;
	table->size = ref->size;
	memcpy(table->digest, ref->digest, sizeof(table->digest));
	table->data = aligned_alloc(64, room ? room : 64);
	if (table->data) {
		memcpy(table->data, bytes, ref->size);
		// The checksum of the copy: the caller's bytes might still change under us.
		if (idm_crc32(0, table->data, ref->size) == ref->crc32)
			r = check_table(table, err);
		else
			r = idm_fail(err, -EINVAL, "table %s: checksum differs", table_names[ref->kind - 1]);
	} else {
		r = idm_fail(err, -ENOMEM, "table %s: out of memory", table_names[ref->kind - 1]);
	}
	if (r)
		table_unref(table);
	else
		*ret = table;
	return r;
}

// Digest, size and checksum promise equality; comparing the bytes makes it certain and is still cheaper than checking.
static bool table_equals(const struct idm_table *table, const struct idm_table_ref *ref, const uint8_t *bytes)
{
	return table->size == ref->size && table->crc32 == ref->crc32 &&
	       memcmp(table->digest, ref->digest, sizeof(ref->digest)) == 0 &&
	       memcmp(table->data, bytes, ref->size) == 0;
}

static int check_header(const uint8_t *data, size_t size, struct idm_header *ret, struct idm_error *err)
{
	const size_t head = sizeof(*ret) + IDM_TABLE_COUNT * sizeof(struct idm_table_ref);
	struct idm_header zeroed;
	uint32_t crc;

	if (size < sizeof(*ret))
		return idm_fail(err, -EINVAL, "not a snapshot: %zu bytes are less than a header", size);
	memcpy(ret, data, sizeof(*ret));
	if (memcmp(ret->magic, "IDMSNAP", 8) != 0)
		return idm_fail(err, -EINVAL, "not a snapshot: wrong magic");
	if (ret->format != IDM_FORMAT)
		return idm_fail(err, -ENOTSUP, "snapshot format %u; this engine reads format %u", ret->format, IDM_FORMAT);
	if (ret->header_size != sizeof(*ret) || ret->table_count != IDM_TABLE_COUNT)
		return idm_fail(err, -EINVAL, "header: size or number of tables differs from format %u", IDM_FORMAT);
	if (ret->file_size != size || size < head)
		return idm_fail(err, -EINVAL, "truncated: %zu bytes, the header says %llu", size,
				(unsigned long long)ret->file_size);
	zeroed = *ret;
	zeroed.crc32 = 0;
	crc = idm_crc32(0, &zeroed, sizeof(zeroed));
	crc = idm_crc32(crc, data + sizeof(*ret), head - sizeof(*ret));
	return crc == ret->crc32 ? 0 : idm_fail(err, -EINVAL, "header: checksum differs");
}

static int check_directory(const uint8_t *data, size_t size, struct idm_table_ref *refs, struct idm_error *err)
{
	uint64_t end = sizeof(struct idm_header) + IDM_TABLE_COUNT * sizeof(*refs);

	memcpy(refs, data + sizeof(struct idm_header), IDM_TABLE_COUNT * sizeof(*refs));
	for (uint32_t i = 0; i < IDM_TABLE_COUNT; i++) {
		if (refs[i].kind != i + 1)
			return idm_fail(err, -EINVAL, "directory[%u]: table kind %u out of order", i, refs[i].kind);
		if (refs[i].offset % 8 || refs[i].offset < end || !idm_in_range(refs[i].offset, refs[i].size, size))
			return idm_fail(err, -EINVAL, "table %s: misaligned, overlapping or outside the file",
					table_names[i]);
		end = refs[i].offset + refs[i].size;
	}
	return 0;
}

// Tables are checked alone and may be paired anew, so what one says of another is checked for each snapshot.
static int check_across(const struct idm_snapshot *snapshot, struct idm_error *err)
{
	uint32_t bound = idm_policies(snapshot)->selector_bound;
	uint32_t count = idm_selectors(snapshot)->selector_count;

	if (bound <= count)
		return 0;
	return idm_fail(err, -EINVAL, "table policies: uses selector %u, but table selectors has %u", bound - 1, count);
}

int idm_snapshot_load(const void *data, size_t size, struct idm_snapshot *previous, struct idm_snapshot **ret,
		      struct idm_error *err)
{
	struct idm_table_ref refs[IDM_TABLE_COUNT];
	struct idm_header header;
	struct idm_snapshot *snapshot;
	int r = check_header(data, size, &header, err);

	if (!r)
		r = check_directory(data, size, refs, err);
	if (r)
		return r;
	snapshot = calloc(1, sizeof(*snapshot));
	if (!snapshot)
		return idm_fail(err, -ENOMEM, "out of memory");
	atomic_init(&snapshot->refs, 1);
	snapshot->revision = header.revision;
	snapshot->domain = header.domain;
	memcpy(snapshot->digest, header.digest, sizeof(snapshot->digest));
	for (uint32_t i = 0; i < IDM_TABLE_COUNT && !r; i++) {
		const uint8_t *bytes = (const uint8_t *)data + refs[i].offset;

		if (previous && table_equals(previous->tables[i], &refs[i], bytes)) {
			snapshot->tables[i] = previous->tables[i];
			table_ref(snapshot->tables[i]);
		} else {
			r = table_create(&refs[i], bytes, &snapshot->tables[i], err);
		}
	}
	if (!r)
		r = check_across(snapshot, err);
	if (r)
		idm_snapshot_unref(snapshot);
	else
		*ret = snapshot;
	return r;
}

void idm_snapshot_ref(struct idm_snapshot *snapshot)
{
	atomic_fetch_add_explicit(&snapshot->refs, 1, memory_order_relaxed);
}

void idm_snapshot_unref(struct idm_snapshot *snapshot)
{
	if (!snapshot || atomic_fetch_sub_explicit(&snapshot->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (int i = 0; i < IDM_TABLE_COUNT; i++)
		table_unref(snapshot->tables[i]);
	free(snapshot);
}

uint64_t idm_snapshot_revision(const struct idm_snapshot *snapshot)
{
	return snapshot->revision;
}

uint64_t idm_snapshot_domain(const struct idm_snapshot *snapshot)
{
	return snapshot->domain;
}

const uint8_t *idm_snapshot_digest(const struct idm_snapshot *snapshot)
{
	return snapshot->digest;
}

const void *idm_snapshot_table(const struct idm_snapshot *snapshot, uint32_t kind, size_t *size)
{
	if (kind < 1 || kind > IDM_TABLE_COUNT)
		return NULL;
	*size = snapshot->tables[kind - 1]->size;
	return snapshot->tables[kind - 1]->data;
}
