/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arbitrary bytes as CheckRequests, against sound snapshots (folder IDMESH_SEEDS) and without any. Besides bad
 * accesses it looks for answers that are no message, and for an allow that the report does not bear out.
 */
#include "../../native/service/wire.h"
#include "idmesh/check.h"
#include "seeds.h"

#define SNAPSHOTS_MAX (SEEDS_MAX + 1)

static struct idm_store *stores[SNAPSHOTS_MAX];
static struct idm_checker *checkers[SNAPSHOTS_MAX];
static uint32_t count;

// A store with this snapshot (NULL: none) and a checker that asks it.
static void add(struct idm_snapshot *snapshot)
{
	stores[count] = idm_store_create();
	idm_store_publish(stores[count], snapshot);
	checkers[count] = idm_checker_create(idm_reader_create(stores[count]));
	count++;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
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

static void check_answer(const char *room, const struct idm_check_result *result, size_t room_size)
{
	bool passes = result->verdict == IDM_FORWARDED || result->verdict == IDM_AUDIT;
	uint32_t seen;

	if ((size_t)result->offset + result->size != room_size || !result->size)
		fail("the answer is not where it is said to be");
	seen = walk((struct idm_bytes){room + result->offset, result->size});
	if (!!(seen & 1u << 3) != passes || !!(seen & 1u << 2) == passes)
		fail("answer and report differ"); // ok_response is 3, denied_response 2
	if (passes && (result->error || !result->revision))
		fail("an error, or no snapshot, passed");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char named[] = "default/server:80";
	static char room[IDM_CHECK_RESPONSE_MAX];
	struct idm_check_options options = {0};
	struct idm_check_result result;
	size_t given, room_size;
	char *request;

	if (size < 3)
		return 0;
	options.direction = data[0] % 4;
	options.peer.required = data[0] >> 2 & 7;
	options.http_follows = data[0] >> 5 & 1;
	if (data[0] & 0x40)
		options.destination = (struct idm_bytes){named, sizeof(named) - 1};
	// A room too small for the answer must end in a denial that fits.
	room_size = data[1] & 0x80 ? sizeof(room) : 512 + data[1];
	given = size - 3;
	request = malloc(given + 1); // of its own, so that a read beyond it is seen
	memcpy(request, data + 3, given);
	memset(&result, 0, sizeof(result));
	idm_check(checkers[data[2] % count], &options, request, given, room, room_size, &result);
	check_answer(room, &result, room_size);
	free(request);
	return 0;
}
