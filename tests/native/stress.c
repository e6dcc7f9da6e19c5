/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readers decide while a publisher swaps snapshots, for the thread sanitizer: no race, no use after free, and every
 * decision agrees with the revision it was made in. Usage: stress SECONDS SNAPSHOT...
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "feed.h"

#define READERS 3
#define FILES_MAX 8

struct file {
	uint8_t *data;
	size_t size;
};

static struct idm_store *store;
static struct file files[FILES_MAX];
static size_t file_count;
static atomic_bool done;
static atomic_ulong decisions, faults;

static void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static void *read_flows(void *argument)
{
	uint64_t state = (uint64_t)(uintptr_t)argument, last = 0;
	struct idm_reader *reader = idm_reader_create(store);

	while (!atomic_load(&done)) {
		const struct idm_snapshot *snapshot = idm_reader_enter(reader);
		uint64_t bytes[8];
		struct feed feed = {.data = (const uint8_t *)bytes, .size = sizeof(bytes)};
		struct idm_verdict verdict;
		struct feed_flow flow;

		for (size_t i = 0; i < 8; i++)
			bytes[i] = state = state * 6364136223846793005ull + 1442695040888963407ull;
		if (snapshot) {
			feed_next(&feed, &flow);
			idm_decide(snapshot, &flow.flow, &verdict);
			// Revisions rise, and a snapshot is whole.
			if (verdict.revision < last || verdict.revision != idm_snapshot_revision(snapshot) ||
			    feed_fault(&flow.flow, &verdict))
				atomic_fetch_add(&faults, 1);
			last = verdict.revision;
			atomic_fetch_add(&decisions, 1);
		}
		idm_reader_leave(reader);
		// Readers come and go, too.
		if (state % 4096 == 0) {
			idm_reader_destroy(reader);
			reader = idm_reader_create(store);
		}
	}
	idm_reader_destroy(reader);
	return NULL;
}

static void set_revision(struct file *file, uint64_t revision)
{
	struct idm_header header;
	const size_t rest = IDM_TABLE_COUNT * sizeof(struct idm_table_ref);

	memcpy(&header, file->data, sizeof(header));
	header.revision = revision;
	header.crc32 = 0;
	header.crc32 = idm_crc32(idm_crc32(0, &header, sizeof(header)), file->data + sizeof(header), rest);
	memcpy(file->data, &header, sizeof(header));
}

static unsigned long publish_for(int seconds)
{
	time_t end = time(NULL) + seconds;
	unsigned long count = 0;

	while (time(NULL) < end) {
		struct file *file = &files[count % file_count];
		struct idm_snapshot *next, *current = idm_store_current(store);
		struct idm_error error;

		set_revision(file, ++count);
		if (idm_snapshot_load(file->data, file->size, current, &next, &error))
			fail(error.message);
		idm_snapshot_unref(current);
		idm_store_publish(store, next);
		if (idm_store_readers_revision(store) > count)
			fail("a reader saw a revision that does not exist");
	}
	return count;
}

static void load_file(const char *path)
{
	FILE *input = fopen(path, "rb");
	struct file *file = &files[file_count++];

	if (!input)
		fail(path);
	file->data = malloc(1 << 20);
	file->size = fread(file->data, 1, 1 << 20, input);
	fclose(input);
}

int main(int argc, char **argv)
{
	pthread_t readers[READERS];
	unsigned long published;

	if (argc < 3)
		fail("usage: stress SECONDS SNAPSHOT...");
	for (int i = 2; i < argc && file_count < FILES_MAX; i++)
		load_file(argv[i]);
	store = idm_store_create();
	for (uintptr_t i = 0; i < READERS; i++)
		pthread_create(&readers[i], NULL, read_flows, (void *)(i + 1));
	published = publish_for(atoi(argv[1]));
	atomic_store(&done, true);
	for (int i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	idm_store_destroy(store);
	for (size_t i = 0; i < file_count; i++)
		free(files[i].data);
	printf("%lu decisions over %lu snapshots, %lu faults\n", atomic_load(&decisions), published, atomic_load(&faults));
	return atomic_load(&faults) || !atomic_load(&decisions);
}
