/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arbitrary bytes as the messages of one ext_proc stream, against sound snapshots (folder IDMESH_SEEDS) and without
 * any, with a ring for the records. Besides bad accesses it looks for answers that are no message, for an allow that
 * the report does not bear out, and for a stream that could end well before its request was judged.
 */
#include "../../native/service/wire.h"
#include "idmesh/flow.h"
#include "idmesh/process.h"
#include "seeds.h"

#define SNAPSHOTS_MAX (SEEDS_MAX + 1)
#define MESSAGES_MAX 8

static struct idm_checker *checkers[SNAPSHOTS_MAX];
static struct idm_ring *ring;
static struct idm_ring_view *view;
static uint32_t count;

// A store with this snapshot (NULL: none) and a checker that asks it.
static void add(struct idm_snapshot *snapshot)
{
	struct idm_store *store = idm_store_create();

	idm_store_publish(store, snapshot);
	checkers[count] = idm_checker_create(idm_reader_create(store));
	if (count % 2) // some without records
		idm_checker_record(checkers[count], ring);
	count++;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	ring = idm_ring_create(IDM_RING_MIN, IDM_DOOR_EXT_AUTHZ, 0);
	if (!ring || idm_ring_open(idm_ring_fd(ring), &view))
		fail("no ring");
	add(NULL);
	seeds_each(add);
	return 0;
}

// Every level that is a message must be one. Returns the mask of field numbers below 32.
static uint32_t walk(struct idm_bytes message)
{
	struct wire_cursor cursor = wire_open(message);
	struct wire_field field;
	uint32_t seen = 0;
	int r;

	while ((r = wire_next(&cursor, &field)) > 0)
		seen |= field.number < 32 ? 1u << field.number : 0;
	if (r)
		fail("the answer is no message");
	return seen;
}

static void check_answer(const char *room, size_t room_size, const struct idm_process_result *result)
{
	const struct idm_check_result *check = &result->check;
	bool passes = check->verdict == IDM_FORWARDED || check->verdict == IDM_AUDIT;
	uint32_t seen = 0;

	if (check->size) {
		if ((size_t)check->offset + check->size != room_size || result->observed)
			fail("the answer is not where it is said to be, or nobody waits for it");
		seen = walk((struct idm_bytes){room + check->offset, check->size});
	}
	if (seen & 1u << 1 && (!result->judged || !passes || check->error || !check->revision))
		fail("a request passed without a verdict that lets it"); // request_headers is 1, immediate_response 7
	if (result->judged && !result->observed && !!(seen & 1u << 7) == passes)
		fail("answer and report differ");
}

// One message after another, each of which its size precedes.
static void play(struct idm_checker *checker, const struct idm_check_options *options, const uint8_t *data, size_t size,
		 size_t room_size)
{
	static char room[IDM_CHECK_RESPONSE_MAX];
	struct idm_stream *stream = idm_stream_open(checker);
	struct idm_process_result result = {0};
	bool passed = false;

	for (int i = 0; i < MESSAGES_MAX && size >= 2 && !result.ends; i++) {
		size_t given = (size_t)data[0] << 8 | data[1];
		char *message;

		data += 2;
		size -= 2;
		given = given < size ? given : size;
		message = malloc(given + 1); // of its own, so that a read beyond it is seen
		memcpy(message, data, given);
		idm_process(checker, stream, options, message, given, room, room_size, &result);
		free(message);
		check_answer(room, room_size, &result);
		passed |= result.judged && (result.observed || result.check.verdict != IDM_DROPPED);
		if (!!idm_stream_is_judged(stream) != passed || (result.ends && !result.status && !passed))
			fail("a stream could end well before its request was let through");
		data += given;
		size -= given;
	}
	idm_stream_close(checker, stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char named[] = "default/server:80";
	static char records[1 << 16];
	struct idm_check_options options = {0};

	if (size < 3)
		return 0;
	options.direction = data[0] % 4;
	options.peer.required = data[0] >> 2 & 7;
	options.source_address = data[0] >> 5 & 1;
	if (data[0] & 0x40)
		options.destination = (struct idm_bytes){named, sizeof(named) - 1};
	// A room too small for the answer must end in a denial that fits.
	play(checkers[data[2] % count], &options, data + 3, size - 3,
	     data[1] & 0x80 ? IDM_CHECK_RESPONSE_MAX : 768 + data[1]);
	if (idm_ring_take(view, records, sizeof(records)) < 0)
		fail("what was written is no record");
	return 0;
}
