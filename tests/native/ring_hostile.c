/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flow ring when one of its ends means harm, under sanitizers: whatever it writes into the memory they share, the
 * other neither reads nor writes where it must not, and goes on afterwards.
 */
#define _GNU_SOURCE
#include "ring_pair.h"

#include <fcntl.h>

static void test_a_hostile_tail_loses_records_and_nothing_else(void)
{
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	uint64_t good, written, size, lost = 1;

	CHECK(!idm_ring_put(pair.ring, &facts));
	size = pair.head->head;
	// The tail is looked at when there is no more room by the last look.
	while (!idm_ring_put(pair.ring, &facts))
		;
	good = pair.head->head;
	written = idm_ring_written(pair.ring);
	const uint64_t tails[] = {good + 1, good + 8, UINT64_MAX - SIZE, good - SIZE - 1, good - SIZE, good - SIZE + 1,
				  good + SIZE, UINT64_C(1) << 63};

	for (size_t i = 0; i < sizeof(tails) / sizeof(*tails); i++) {
		pair.head->tail = tails[i];
		CHECK(idm_ring_put(pair.ring, &facts) == -ENOSPC);
		CHECK(idm_ring_lost(pair.ring) == ++lost && idm_ring_written(pair.ring) == written);
	}
	// A tail that could be one frees no more than the ring holds; where we write does not depend on it.
	pair.head->tail = good - 3;
	pair.head->head = 0xabcdef;
	pair.head->data_size = 1;
	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(pair.head->head == good + size);
	CHECK(!memcmp(pair.data + good, pair.data, 4));
	close_pair(&pair);
}

static void test_a_hostile_head_reads_nothing_that_is_not_there(void)
{
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	char *room = NULL;
	uint64_t good;

	CHECK(!idm_ring_put(pair.ring, &facts));
	good = pair.head->head;
	const uint64_t heads[] = {good - 1, 1, 8, SIZE + 1, UINT64_MAX, good + 8};

	for (size_t i = 0; i < sizeof(heads) / sizeof(*heads); i++) {
		struct idm_ring_view *view;

		pair.head->tail = 0;
		pair.head->head = heads[i];
		CHECK(!idm_ring_open(idm_ring_fd(pair.ring), &view));
		room = realloc(room, IDM_RECORD_MAX);
		if (heads[i] > SIZE)
			CHECK(idm_ring_take(view, room, IDM_RECORD_MAX) == -EBADMSG);
		for (int turn = 0; turn < 3; turn++)
			CHECK(idm_ring_take(view, room, IDM_RECORD_MAX) <= (int64_t)good);
		CHECK(pair.head->tail == heads[i]);
		idm_ring_close(view);
	}
	free(room);
	close_pair(&pair);
}

static void test_a_damaged_record_is_skipped_or_whole(void)
{
	const struct idm_header_line line = {TEXT("name"), TEXT("value")};
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/path"));
	struct idm_flow_record record;
	char *room = NULL;

	facts.headers = &line;
	facts.header_count = 1;
	for (size_t byte = 0; byte < sizeof(record); byte++) {
		uint64_t start = pair.head->head;
		int64_t size;

		CHECK(!idm_ring_put(pair.ring, &facts));
		pair.data[(start + byte) % SIZE] ^= 0x41;
		size = take(&pair, &room, IDM_RECORD_MAX);
		CHECK(size == -EBADMSG || size == (int64_t)(pair.head->head - start));
		if (byte < 5 || (byte >= offsetof(struct idm_flow_record, method_size) &&
				 byte < offsetof(struct idm_flow_record, reserved)))
			CHECK(size == -EBADMSG);
		CHECK(pair.head->tail == pair.head->head);
		// What comes next is read again.
		CHECK(!idm_ring_put(pair.ring, &facts));
		CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
	}
	free(room);
	close_pair(&pair);
}

// What a consumer says of these bytes, `ahead` of them written, at a place of the ring.
static int64_t judge(struct pair *pair, uint64_t place, const void *bytes, size_t size, uint64_t ahead)
{
	char *room = malloc(2 * IDM_RECORD_MAX);
	struct idm_ring_view *view;
	int64_t said;

	memcpy(pair->data + place, bytes, size);
	pair->head->tail = place;
	pair->head->head = place + ahead;
	CHECK(!idm_ring_open(idm_ring_fd(pair->ring), &view));
	said = idm_ring_take(view, room, 2 * IDM_RECORD_MAX);
	CHECK(pair->head->tail == place + (said > 0 ? (uint64_t)said : ahead));
	idm_ring_close(view);
	free(room);
	return said;
}

static void test_a_record_that_counts_more_than_it_has_is_none(void)
{
	static char bytes[2 * IDM_RECORD_MAX];
	struct idm_flow_record record = {.version = IDM_FLOW_VERSION, .size = sizeof(record)};
	const struct idm_flow_record sound = record;
	struct pair pair = open_pair();

#define SAID(ahead) (memcpy(bytes, &record, sizeof(record)), judge(&pair, 0, bytes, sizeof(bytes), ahead))
	CHECK(SAID(sizeof(record)) == sizeof(record));
	for (uint64_t place = 1; place < 8; place++)
		CHECK(judge(&pair, place, bytes, sizeof(record), sizeof(record)) == -EBADMSG);
	record.path_size = 8;
	CHECK(SAID(sizeof(record)) == -EBADMSG);
	record.size += 8;
	CHECK(SAID(sizeof(record)) == -EBADMSG); // nobody wrote its end yet
	CHECK(SAID(sizeof(record) + 8) == sizeof(record) + 8);
	record.path_size = 0;
	CHECK(SAID(sizeof(record) + 8) == -EBADMSG); // more padding than there is need for
	record.path_size = IDM_RECORD_MAX + 8 - sizeof(record);
	record.size = IDM_RECORD_MAX + 8;
	CHECK(SAID(sizeof(bytes)) == -EBADMSG);
	// Headers that are not counted, and one that is not there.
	record = sound;
	record.size += 8;
	record.headers_size = 8;
	CHECK(SAID(sizeof(record) + 8) == -EBADMSG);
	record.header_count = 2;
	CHECK(SAID(sizeof(record) + 8) == sizeof(record) + 8); // two empty ones
	record.header_count = 3;
	CHECK(SAID(sizeof(record) + 8) == -EBADMSG);
	record.header_count = 1;
	bytes[sizeof(record)] = 5;
	CHECK(SAID(sizeof(record) + 8) == -EBADMSG);
	bytes[sizeof(record)] = 4;
	CHECK(SAID(sizeof(record) + 8) == sizeof(record) + 8);
#undef SAID
	close_pair(&pair);
}

static void test_what_was_read_before_the_damage_is_handed_out(void)
{
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	char *room = NULL;
	uint64_t one;

	CHECK(!idm_ring_put(pair.ring, &facts));
	one = pair.head->head;
	CHECK(!idm_ring_put(pair.ring, &facts));
	memset(pair.data + one, 0, 4);
	CHECK(take(&pair, &room, 2 * IDM_RECORD_MAX) == (int64_t)one);
	CHECK(take(&pair, &room, 2 * IDM_RECORD_MAX) == -EBADMSG);
	CHECK(!take(&pair, &room, 2 * IDM_RECORD_MAX));
	free(room);
	close_pair(&pair);
}

static int memory(off_t size, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct idm_ring_head head = {.magic = IDM_RING_MAGIC, .version = IDM_RING_VERSION, .data_size = SIZE};

	CHECK(fd >= 0 && !ftruncate(fd, size));
	CHECK(pwrite(fd, &head, sizeof(head), 0) == sizeof(head));
	CHECK(!seals || !fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

static void test_only_sealed_memory_of_a_sound_size_is_mapped(void)
{
	const int bad[] = {memory(IDM_RING_PAGE + SIZE, 0), memory(IDM_RING_PAGE + SIZE, F_SEAL_GROW),
			   memory(IDM_RING_PAGE + SIZE + 1, F_SEAL_SHRINK), memory(IDM_RING_PAGE, F_SEAL_SHRINK),
			   memory(IDM_RING_PAGE + SIZE / 2, F_SEAL_SHRINK),
			   memory(IDM_RING_PAGE + 2 * SIZE, F_SEAL_SHRINK), // its head says SIZE
			   memory(IDM_RING_PAGE + SIZE, F_SEAL_SHRINK | F_SEAL_WRITE), open("/dev/zero", O_RDWR), -1};
	struct idm_ring_view *view;
	int good = memory(IDM_RING_PAGE + SIZE, F_SEAL_SHRINK);

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		CHECK(idm_ring_open(bad[i], &view) == -EINVAL);
		if (bad[i] >= 0)
			close(bad[i]);
	}
	CHECK(!idm_ring_open(good, &view));
	idm_ring_close(view);
	close(good);
}

static void test_nobody_can_change_the_size_of_a_ring(void)
{
	struct pair pair = open_pair();

	CHECK(ftruncate(idm_ring_fd(pair.ring), 0) < 0 && errno == EPERM);
	CHECK(ftruncate(idm_ring_fd(pair.ring), 1 << 30) < 0 && errno == EPERM);
	CHECK(fcntl(idm_ring_fd(pair.ring), F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
	close_pair(&pair);
}

static void test_memory_that_is_taken_away_comes_back_empty(void)
{
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	char *room = NULL;

	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(!fallocate(idm_ring_fd(pair.ring), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, IDM_RING_PAGE + SIZE));
	CHECK(!take(&pair, &room, IDM_RECORD_MAX));
	// The producer knows where it is; what stood before is lost, what comes is read.
	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(take(&pair, &room, IDM_RECORD_MAX) == -EBADMSG);
	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
	free(room);
	close_pair(&pair);
}

int main(void)
{
	test_a_hostile_tail_loses_records_and_nothing_else();
	test_a_hostile_head_reads_nothing_that_is_not_there();
	test_a_damaged_record_is_skipped_or_whole();
	test_a_record_that_counts_more_than_it_has_is_none();
	test_what_was_read_before_the_damage_is_handed_out();
	test_only_sealed_memory_of_a_sound_size_is_mapped();
	test_nobody_can_change_the_size_of_a_ring();
	test_memory_that_is_taken_away_comes_back_empty();
	puts("hostile flow ring: ok");
	return 0;
}
