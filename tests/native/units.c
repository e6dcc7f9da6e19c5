/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's C tests that want a sanitizer more than a framework: damaged snapshots, paths, hashing in pieces, the
 * store. What a verdict should be is tested from Python (tests/unit/engine).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "feed.h"
#include "hash.h"
#include "headers.h"

#define CHECK(condition)                                                                             \
	do {                                                                                         \
		if (!(condition)) {                                                                  \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition); \
			exit(1);                                                                     \
		}                                                                                    \
	} while (0)

struct file {
	char *data;
	size_t size;
};

static struct file read_seed(const char *name)
{
	struct file file = {.data = malloc(1 << 20)};
	const char *folder = getenv("IDMESH_SEEDS");
	char path[4096];
	FILE *input;

	CHECK(folder);
	snprintf(path, sizeof(path), "%s/%s.snapshot", folder, name);
	input = fopen(path, "rb");
	CHECK(input);
	file.size = fread(file.data, 1, 1 << 20, input);
	fclose(input);
	return file;
}

static struct idm_snapshot *load(const struct file *file, struct idm_snapshot *previous)
{
	struct idm_snapshot *snapshot = NULL;
	struct idm_error error;
	int r = idm_snapshot_load(file->data, file->size, previous, &snapshot, &error);

	if (r)
		fprintf(stderr, "%s\n", error.message);
	CHECK(!r);
	return snapshot;
}

// The bytes are copied to their own allocation, so that a read past the end is seen.
static int load_prefix(const struct file *file, size_t size)
{
	struct idm_snapshot *snapshot = NULL;
	struct idm_error error = {{0}};
	char *copy = malloc(size ? size : 1);
	int r;

	memcpy(copy, file->data, size);
	r = idm_snapshot_load(copy, size, NULL, &snapshot, &error);
	free(copy);
	CHECK((r == 0) == (snapshot != NULL));
	CHECK(!r || error.message[0]);
	idm_snapshot_unref(snapshot);
	return r;
}

static void test_every_truncation_is_refused(const struct file *file)
{
	for (size_t size = 0; size < file->size; size++)
		CHECK(load_prefix(file, size) == -EINVAL);
	CHECK(load_prefix(file, file->size) == 0);
}

static void test_every_flipped_byte_of_a_table_is_refused(const struct file *file)
{
	struct idm_table_ref refs[IDM_TABLE_COUNT];

	memcpy(refs, file->data + sizeof(struct idm_header), sizeof(refs));
	for (int table = 0; table < IDM_TABLE_COUNT; table++) {
		for (uint64_t i = 0; i < refs[table].size; i++) {
			file->data[refs[table].offset + i] ^= 0x41;
			CHECK(load_prefix(file, file->size) == -EINVAL);
			file->data[refs[table].offset + i] ^= 0x41;
		}
	}
	CHECK(load_prefix(file, file->size) == 0);
}

static void test_every_flipped_byte_of_the_head_is_refused(const struct file *file)
{
	size_t head = sizeof(struct idm_header) + IDM_TABLE_COUNT * sizeof(struct idm_table_ref);

	for (size_t i = 0; i < head; i++) {
		file->data[i] ^= 0x41;
		CHECK(load_prefix(file, file->size) < 0);
		file->data[i] ^= 0x41;
	}
}

static void test_another_format_is_not_supported(const struct file *file)
{
	uint32_t format = IDM_FORMAT + 1;

	memcpy(file->data + offsetof(struct idm_header, format), &format, sizeof(format));
	CHECK(load_prefix(file, file->size) == -ENOTSUP);
	format = IDM_FORMAT;
	memcpy(file->data + offsetof(struct idm_header, format), &format, sizeof(format));
}

static void test_equal_tables_are_shared_and_outlive_the_first_snapshot(const struct file *file)
{
	struct idm_snapshot *first = load(file, NULL), *second = load(file, first), *third = load(file, NULL);
	size_t size;

	for (uint32_t kind = 1; kind <= IDM_TABLE_COUNT; kind++) {
		const void *table = idm_snapshot_table(first, kind, &size);

		CHECK(table == idm_snapshot_table(second, kind, &size));
		CHECK(table != idm_snapshot_table(third, kind, &size));
		CHECK(memcmp(table, idm_snapshot_table(third, kind, &size), size) == 0);
	}
	CHECK(!idm_snapshot_table(first, 0, &size) && !idm_snapshot_table(first, IDM_TABLE_COUNT + 1, &size));
	idm_snapshot_unref(first);
	idm_snapshot_unref(third);
	CHECK(((const char *)idm_snapshot_table(second, IDM_TABLE_POLICIES, &size))[size - 1] != 0x7f);
	idm_snapshot_unref(second);
}

static void test_store_keeps_what_a_reader_holds(const struct file *a, const struct file *b)
{
	struct idm_store *store = idm_store_create();
	struct idm_reader *reader = idm_reader_create(store), *idle = idm_reader_create(store);
	struct idm_snapshot *current;
	const struct idm_snapshot *held;

	CHECK(!idm_reader_enter(reader));
	idm_reader_leave(reader);
	idm_store_publish(store, load(a, NULL));
	held = idm_reader_enter(reader);
	idm_store_publish(store, load(b, NULL));
	// Still readable, and the same on a nested entry, though another one is current.
	CHECK(idm_snapshot_revision(held) && idm_reader_enter(reader) == held);
	current = idm_store_current(store);
	CHECK(current && current != held);
	idm_snapshot_unref(current);
	idm_reader_leave(reader);
	CHECK(idm_snapshot_digest(held)[0] == (uint8_t)a->data[offsetof(struct idm_header, digest)]);
	idm_reader_leave(reader);
	CHECK(idm_reader_enter(reader) == current);
	idm_reader_leave(reader);
	CHECK(idm_store_readers_revision(store) == idm_snapshot_revision(current));
	idm_store_publish(store, NULL);
	CHECK(!idm_reader_enter(idle));
	idm_reader_leave(idle);
	CHECK(idm_store_readers_revision(store) == 0);
	idm_reader_destroy(reader);
	idm_reader_destroy(idle);
	idm_store_destroy(store);
}

static void test_hash_in_pieces_is_the_hash_of_the_whole(void)
{
	char text[40];

	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)(i * 37 + 1);
	for (size_t size = 0; size <= sizeof(text); size++) {
		for (size_t cut = 0; cut <= size; cut++) {
			struct idm_hasher hasher;

			idm_hasher_init(&hasher, 5, size);
			idm_hasher_add(&hasher, text, cut);
			idm_hasher_add(&hasher, text + cut, size - cut);
			CHECK(idm_hasher_finish(&hasher) == idm_hash64(5, text, size));
		}
	}
}

static bool finds(const char *sent, size_t size, const char *wanted)
{
	struct idm_header_line line = {.name = {.ptr = sent, .size = size}};
	struct idm_http http = {.headers = &line, .header_count = 1};

	return idm_header_present(&http, (struct idm_bytes){.ptr = wanted, .size = size});
}

static void test_header_names_ignore_the_case_of_letters_only(void)
{
	static const char lower[] = "abcdefghijklmnopqrstuvwxyz";
	static const char upper[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
	char sent[26], wanted[26];

	for (size_t size = 0; size <= 26; size++)
		CHECK(finds(upper, size, lower) && finds(lower, size, lower));
	for (size_t size = 1; size <= 26; size++) {
		for (size_t at = 0; at < size; at++) {
			for (int c = 0; c < 256; c++) {
				int folded = c >= 'A' && c <= 'Z' ? c + 32 : c;

				memset(sent, 'x', size);
				memset(wanted, 'x', size);
				sent[at] = (char)c;
				wanted[at] = (char)folded;
				CHECK(finds(sent, size, wanted));
				wanted[at] = (char)(folded ^ 0x20);
				CHECK((folded >= 'a' && folded <= 'z') || !finds(sent, size, wanted));
			}
		}
	}
}

static void test_checksum_is_zlibs(void)
{
	CHECK(idm_crc32(0, "123456789", 9) == 0xcbf43926u);
	CHECK(idm_crc32(idm_crc32(0, "1234", 4), "56789", 5) == 0xcbf43926u);
	CHECK(idm_crc32(0, "", 0) == 0);
}

int main(void)
{
	static const char *const seeds[] = {"empty", "http", "l7", "tiers"};
	struct file files[4];

	test_hash_in_pieces_is_the_hash_of_the_whole();
	test_checksum_is_zlibs();
	test_header_names_ignore_the_case_of_letters_only();
	for (size_t i = 0; i < 4; i++) {
		files[i] = read_seed(seeds[i]);
		test_every_truncation_is_refused(&files[i]);
		test_every_flipped_byte_of_a_table_is_refused(&files[i]);
		test_every_flipped_byte_of_the_head_is_refused(&files[i]);
		test_another_format_is_not_supported(&files[i]);
		test_equal_tables_are_shared_and_outlive_the_first_snapshot(&files[i]);
	}
	test_store_keeps_what_a_reader_holds(&files[1], &files[2]);
	for (size_t i = 0; i < 4; i++)
		free(files[i].data);
	puts("engine units: ok");
	return 0;
}
