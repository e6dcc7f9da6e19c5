/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flow ring from both ends, under sanitizers: what is written arrives, what does not fit is counted, and neither end
 * can harm the other, whatever it writes into the memory they share.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "idmesh/flow.h"

#define CHECK(condition)                                                                             \
	do {                                                                                         \
		if (!(condition)) {                                                                  \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition); \
			exit(1);                                                                     \
		}                                                                                    \
	} while (0)
#define TEXT(literal) ((struct idm_bytes){literal, sizeof(literal) - 1})
#define SIZE IDM_RING_MIN

/* A ring with both ends open, and its memory as a third sees it. */
struct pair {
	struct idm_ring *ring;
	struct idm_ring_view *view;
	struct idm_ring_head *head;
	uint8_t *data;
};

static struct pair open_pair(void)
{
	struct pair pair = {.ring = idm_ring_create(SIZE, IDM_DOOR_MODULE, 3)};

	CHECK(pair.ring);
	CHECK(!idm_ring_open(idm_ring_fd(pair.ring), &pair.view));
	pair.head = mmap(NULL, IDM_RING_PAGE + SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, idm_ring_fd(pair.ring), 0);
	CHECK(pair.head != MAP_FAILED);
	pair.data = (uint8_t *)pair.head + IDM_RING_PAGE;
	return pair;
}

static void close_pair(struct pair *pair)
{
	munmap(pair->head, IDM_RING_PAGE + SIZE);
	idm_ring_close(pair->view);
	idm_ring_destroy(pair->ring);
}

static struct idm_flow_facts facts_of(struct idm_bytes path)
{
	struct idm_flow_facts facts = {.path = path};

	facts.fixed.type = IDM_FLOW_REQUEST;
	facts.fixed.door = IDM_DOOR_MODULE;
	facts.fixed.verdict = IDM_FORWARDED;
	return facts;
}

// Room of its own, so that a write beyond it is seen.
static int64_t take(struct pair *pair, char **room, size_t size)
{
	free(*room);
	*room = malloc(size);
	return idm_ring_take(pair->view, *room, size);
}

static void test_a_record_arrives_as_it_was_written(void)
{
	static const char texts[] = "POSTexample.org/a/bHTTP/2sni.example00-11-22-01";
	const struct idm_header_line lines[] = {{TEXT("X-Env"), TEXT("prod")}, {TEXT("x-token"), {NULL, 1}},
						{TEXT("x-none"), TEXT("")}};
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/a/b"));
	struct idm_flow_record record;
	const char *at;
	char *room = NULL;

	facts.fixed.revision = 7;
	facts.method = TEXT("POST");
	facts.host = TEXT("example.org");
	facts.protocol = TEXT("HTTP/2");
	facts.sni = TEXT("sni.example");
	facts.traceparent = TEXT("00-11-22-01");
	facts.headers = lines;
	facts.header_count = 3;
	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
	memcpy(&record, room, sizeof(record));
	CHECK(record.version == IDM_FLOW_VERSION && record.revision == 7 && record.size % 8 == 0 && !record.flags);
	CHECK(!memcmp(room + sizeof(record), texts, sizeof(texts) - 1));
	at = room + sizeof(record) + sizeof(texts) - 1;
	CHECK(record.header_count == 3 && record.headers_size == 5 + 4 + 7 + 15 + 6 + 3 * 4);
	CHECK(!memcmp(at, "\5\0\4\0X-Envprod\7\0\17\0x-tokenHUBBLE_REDACTED\6\0\0\0x-none", record.headers_size));
	for (at += record.headers_size; at < room + record.size; at++)
		CHECK(!*at);
	CHECK(!take(&pair, &room, IDM_RECORD_MAX));
	CHECK(idm_ring_written(pair.ring) == 1 && idm_ring_view_written(pair.view) == 1 && !idm_ring_lost(pair.ring));
	free(room);
	close_pair(&pair);
}

static void test_texts_are_cut_at_their_limits_and_marked(void)
{
	char *text = malloc(70000), *room = NULL;
	struct idm_bytes bytes = {text, 70000};
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(bytes);
	struct idm_flow_record record;

	memset(text, 'x', bytes.size);
	facts.method = facts.host = facts.protocol = facts.sni = facts.traceparent = bytes;
	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
	memcpy(&record, room, sizeof(record));
	CHECK(record.flags == IDM_RECORD_CUT && record.path_size == IDM_RECORD_PATH_MAX);
	CHECK(record.method_size == 255 && record.host_size == 255 && record.protocol_size == 255);
	CHECK(record.sni_size == 255 && record.traceparent_size == 255);
	// At the limit nothing is missing.
	facts = facts_of((struct idm_bytes){text, IDM_RECORD_PATH_MAX});
	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
	memcpy(&record, room, sizeof(record));
	CHECK(!record.flags && record.path_size == IDM_RECORD_PATH_MAX);
	free(room);
	free(text);
	close_pair(&pair);
}

static void test_headers_that_do_not_fit_are_missing_and_marked(void)
{
	char text[300], *room = NULL;
	struct idm_header_line lines[64];
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	struct idm_flow_record record;

	memset(text, 'h', sizeof(text));
	for (int i = 0; i < 64; i++)
		lines[i] = (struct idm_header_line){{text, 255}, {text, 255}};
	facts.headers = lines;
	for (size_t count = 0; count <= 64; count++) {
		facts.header_count = count;
		CHECK(!idm_ring_put(pair.ring, &facts));
		CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
		memcpy(&record, room, sizeof(record));
		CHECK(record.size <= IDM_RECORD_MAX);
		CHECK((record.header_count < count) == !!(record.flags & IDM_RECORD_HEADERS_CUT));
	}
	// A name is never cut: another header would be meant.
	lines[1].name.size = 256;
	facts.header_count = 3;
	CHECK(!idm_ring_put(pair.ring, &facts));
	CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
	memcpy(&record, room, sizeof(record));
	CHECK(record.flags & IDM_RECORD_HEADERS_CUT && record.header_count == 2);
	free(room);
	close_pair(&pair);
}

static void test_a_full_ring_loses_and_counts(void)
{
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	uint64_t written = 0, read = 0;
	char *room = NULL;
	int64_t size;

	while (!idm_ring_put(pair.ring, &facts))
		written++;
	CHECK(idm_ring_put(pair.ring, &facts) == -ENOSPC);
	CHECK(idm_ring_written(pair.ring) == written && idm_ring_lost(pair.ring) == 2);
	CHECK(idm_ring_view_written(pair.view) == written && idm_ring_view_lost(pair.view) == 2);
	while ((size = take(&pair, &room, IDM_RECORD_MAX)) > 0)
		for (int64_t at = 0; at < size; at += *(uint32_t *)(void *)(room + at))
			read++;
	CHECK(!size && read == written);
	CHECK(!idm_ring_put(pair.ring, &facts));
	free(room);
	close_pair(&pair);
}

static void test_records_pass_the_seam_whole(void)
{
	char path[1024], *room = NULL;
	struct pair pair = open_pair();

	for (uint32_t turn = 0; turn < 4096; turn++) {
		size_t size = turn * 37 % sizeof(path);
		struct idm_flow_facts facts = facts_of((struct idm_bytes){path, size});

		memset(path, (int)turn, size);
		facts.fixed.revision = turn;
		CHECK(!idm_ring_put(pair.ring, &facts));
		CHECK(take(&pair, &room, IDM_RECORD_MAX) > 0);
		CHECK(((struct idm_flow_record *)(void *)room)->revision == turn);
		CHECK(!memcmp(room + sizeof(struct idm_flow_record), path, size));
	}
	CHECK(!idm_ring_lost(pair.ring));
	free(room);
	close_pair(&pair);
}

static void test_a_hostile_tail_loses_records_and_nothing_else(void)
{
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	uint64_t good, written, lost = 0;

	for (int i = 0; i < 3; i++)
		CHECK(!idm_ring_put(pair.ring, &facts));
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
	CHECK(pair.head->head == good + (good / 3));
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

static void test_sizes_that_are_no_ring_are_refused(void)
{
	const uint32_t bad[] = {0, 1, 4096, IDM_RING_MIN / 2, IDM_RING_MIN + 8, IDM_RING_MAX * 2u, UINT32_MAX};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		errno = 0;
		CHECK(!idm_ring_create(bad[i], IDM_DOOR_MODULE, 0) && errno == EINVAL);
	}
}

static void test_nobody_can_change_the_size_of_a_ring(void)
{
	struct pair pair = open_pair();

	CHECK(ftruncate(idm_ring_fd(pair.ring), 0) < 0 && errno == EPERM);
	CHECK(ftruncate(idm_ring_fd(pair.ring), 1 << 30) < 0 && errno == EPERM);
	CHECK(fcntl(idm_ring_fd(pair.ring), F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
	close_pair(&pair);
}

static void test_a_child_has_no_ring(void)
{
	struct pair pair = open_pair();
	struct idm_flow_facts facts = facts_of(TEXT("/"));
	int status;
	pid_t child;

	CHECK(!idm_ring_put(pair.ring, &facts));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		bool none = idm_ring_put(pair.ring, &facts) == -ENOSPC && idm_ring_fd(pair.ring) == -1 &&
			    !idm_ring_written(pair.ring);

		idm_ring_destroy(pair.ring);
		_exit(none ? 0 : 1);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
	CHECK(!idm_ring_put(pair.ring, &facts) && idm_ring_view_written(pair.view) == 2);
	close_pair(&pair);
}

// --- handing over ---

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	unlink(path);
	CHECK(fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof(address)) && !listen(fd, 4));
	return fd;
}

// The ring that comes with the next message; its worker's number is checked.
static void receive(int connection, uint32_t worker)
{
	struct idm_ring_hello hello;
	struct iovec part = {&hello, sizeof(hello)};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	struct idm_ring_view *view;
	int fd;

	CHECK(recvmsg(connection, &message, MSG_DONTWAIT) == sizeof(hello));
	CHECK(hello.magic == IDM_RING_MAGIC && hello.version == IDM_RING_VERSION && hello.worker == worker);
	CHECK(hello.data_size == SIZE && hello.pid == (uint64_t)getpid());
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	CHECK(!idm_ring_open(fd, &view));
	idm_ring_close(view);
	close(fd);
}

static void test_rings_are_handed_over_again_when_the_observer_comes_back(void)
{
	struct idm_ring *rings[] = {idm_ring_create(SIZE, 1, 0), idm_ring_create(SIZE, 1, 1)};
	int connection = -1, listener, peer;
	char path[] = "ring_test.sock";

	unlink(path);
	CHECK(!idm_rings_offer(path, rings, 2, &connection) && connection == -1);
	for (int turn = 0; turn < 2; turn++) {
		listener = listen_at(path);
		CHECK(idm_rings_offer(path, rings, 2, &connection) == 1 && connection >= 0);
		CHECK(!idm_rings_offer(path, rings, 2, &connection));
		peer = accept(listener, NULL, NULL);
		CHECK(peer >= 0);
		receive(peer, 0);
		receive(peer, 1);
		close(peer);
		close(listener);
		CHECK(!idm_rings_offer(path, rings, 2, &connection) && connection == -1);
	}
	unlink(path);
	CHECK(idm_rings_offer("/dev/null", rings, 2, &connection) <= 0 && connection == -1);
	for (int i = 0; i < 2; i++)
		idm_ring_destroy(rings[i]);
}

int main(void)
{
	test_a_record_arrives_as_it_was_written();
	test_texts_are_cut_at_their_limits_and_marked();
	test_headers_that_do_not_fit_are_missing_and_marked();
	test_a_full_ring_loses_and_counts();
	test_records_pass_the_seam_whole();
	test_a_hostile_tail_loses_records_and_nothing_else();
	test_a_hostile_head_reads_nothing_that_is_not_there();
	test_a_damaged_record_is_skipped_or_whole();
	test_a_record_that_counts_more_than_it_has_is_none();
	test_what_was_read_before_the_damage_is_handed_out();
	test_only_sealed_memory_of_a_sound_size_is_mapped();
	test_sizes_that_are_no_ring_are_refused();
	test_nobody_can_change_the_size_of_a_ring();
	test_a_child_has_no_ring();
	test_rings_are_handed_over_again_when_the_observer_comes_back();
	puts("flow ring: ok");
	return 0;
}
