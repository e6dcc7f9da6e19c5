/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loader over mutated snapshots. Whatever it accepts must then answer any flow, address and explanation without
 * a bad access. Checksums are mended after most mutations, else nothing would get past them.
 */
#include <stdio.h>
#include <stdlib.h>

#include "feed.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static void mend_table(uint8_t *data, size_t size, struct idm_table_ref *ref)
{
	if (ref->offset <= size && ref->size <= size - ref->offset)
		ref->crc32 = idm_crc32(0, data + ref->offset, ref->size);
}

static void mend(uint8_t *data, size_t size)
{
	struct idm_table_ref refs[IDM_TABLE_COUNT];
	struct idm_header header;

	if (size < sizeof(header) + sizeof(refs))
		return;
	memcpy(&header, data, sizeof(header));
	memcpy(refs, data + sizeof(header), sizeof(refs));
	for (int i = 0; i < IDM_TABLE_COUNT; i++)
		mend_table(data, size, &refs[i]);
	memcpy(data + sizeof(header), refs, sizeof(refs));
	memcpy(header.magic, "IDMSNAP", 8);
	header.format = IDM_FORMAT;
	header.header_size = sizeof(header);
	header.table_count = IDM_TABLE_COUNT;
	header.file_size = size;
	header.crc32 = 0;
	header.crc32 = idm_crc32(idm_crc32(0, &header, sizeof(header)), refs, sizeof(refs));
	memcpy(data, &header, sizeof(header));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	// Small steps inside one place keep most of a snapshot valid; growing it shifts everything.
	if (seed % 8 && size > sizeof(struct idm_header)) {
		size_t at = seed / 8 % size, room = size - at < 8 ? size - at : 8;

		LLVMFuzzerMutate(data + at, room, room);
	} else {
		size = LLVMFuzzerMutate(data, size, max_size);
	}
	if (seed % 16)
		mend(data, size);
	return size;
}

static void ask(const struct idm_snapshot *snapshot, const uint8_t *data, size_t size)
{
	struct feed feed = {.data = data, .size = size < 4096 ? size : 4096};
	struct idm_considered list[4];
	struct idm_verdict verdict;
	struct feed_flow flow;
	uint32_t identity, endpoint;

	for (int i = 0; i < 64 && feed.size; i++) {
		size_t count = 4;
		const char *fault;

		feed_next(&feed, &flow);
		idm_decide(snapshot, &flow.flow, &verdict);
		fault = feed_fault(&flow.flow, &verdict);
		if (fault) {
			fprintf(stderr, "%s\n", fault);
			abort();
		}
		idm_explain(snapshot, &flow.flow, &verdict, list, &count);
		idm_reads_headers(snapshot, &flow.flow);
	}
	if (size >= 16) {
		idm_resolve(snapshot, 4, data, &identity, &endpoint);
		idm_resolve(snapshot, 6, data, &identity, &endpoint);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct idm_snapshot *snapshot, *again;
	struct idm_error error = {{0}};

	if (idm_snapshot_load(data, size, NULL, &snapshot, &error)) {
		if (!error.message[0])
			abort();
		return 0;
	}
	ask(snapshot, data, size);
	// Equal tables are shared, and the new snapshot outlives the old one.
	if (idm_snapshot_load(data, size, snapshot, &again, &error))
		abort();
	idm_snapshot_unref(snapshot);
	ask(again, data + size / 2, size - size / 2);
	idm_snapshot_unref(again);
	return 0;
}
