/* SPDX-License-Identifier: Apache-2.0 */
/* The flow ring, under sanitizers: what is written arrives as it was, what does not fit is marked or counted. */
#define _GNU_SOURCE
#include "ring_pair.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

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

static void test_sizes_that_are_no_ring_are_refused(void)
{
	const uint32_t bad[] = {0, 1, 4096, IDM_RING_MIN / 2, IDM_RING_MIN + 8, IDM_RING_MAX * 2u, UINT32_MAX};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		errno = 0;
		CHECK(!idm_ring_create(bad[i], IDM_DOOR_MODULE, 0) && errno == EINVAL);
	}
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
	test_sizes_that_are_no_ring_are_refused();
	test_a_child_has_no_ring();
	test_rings_are_handed_over_again_when_the_observer_comes_back();
	puts("flow ring: ok");
	return 0;
}
