// SPDX-License-Identifier: Apache-2.0
// Metadata of a decision. It never changes one: what does not fit is cut.

#include "report.h"

#include <string.h>
#include <sys/random.h>

#include "mesh.h"
#include "view.h"

// One system call serves this many ids.
#define ID_BATCH 256

struct id_pool {
	unsigned int left;
	uint8_t bytes[ID_BATCH][DECISION_ID_BYTES];
};
static __thread struct id_pool ids;

void report_id(uint8_t ret[DECISION_ID_BYTES])
{
	if (!ids.left) {
		// Nothing else may stand in an id: the client reads it.
		if (getrandom(ids.bytes, sizeof(ids.bytes), 0) != (ssize_t)sizeof(ids.bytes))
			memset(ids.bytes, 0, sizeof(ids.bytes));
		ids.left = ID_BATCH;
	}
	memcpy(ret, ids.bytes[--ids.left], DECISION_ID_BYTES);
}

void report_id_text(const uint8_t id[DECISION_ID_BYTES], char ret[DECISION_ID_SIZE])
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < DECISION_ID_BYTES; i++) {
		ret[2 * i] = digits[id[i] >> 4];
		ret[2 * i + 1] = digits[id[i] & 15];
	}
}

static void append(struct report *report, struct idm_bytes part)
{
	size_t room = sizeof(report->text) - report->used;
	size_t size = part.size < room ? part.size : room;

	if (size)
		memcpy(report->text + report->used, part.ptr, size);
	report->used += size;
}

static void append_number(struct report *report, uint64_t number)
{
	char digits[20];
	size_t at = sizeof(digits);

	do {
		digits[--at] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	append(report, (struct idm_bytes){digits + at, sizeof(digits) - at});
}

static void add(struct report *report, struct idm_bytes key, struct idm_bytes value)
{
	if (report->count < REPORT_PAIRS)
		report->pairs[report->count++] = (struct envoy_pair){key, value};
}

static void add_from(struct report *report, struct idm_bytes key, size_t start)
{
	add(report, key, (struct idm_bytes){report->text + start, report->used - start});
}

static void add_number(struct report *report, struct idm_bytes key, uint64_t number)
{
	size_t start = report->used;

	append_number(report, number);
	add_from(report, key, start);
}

static void add_rule(struct report *report, const struct view_rule *rule)
{
	size_t start = report->used;

	append(report, rule->file);
	append(report, IDM_TEXT(":"));
	append_number(report, rule->line);
	add_from(report, IDM_TEXT("rule"), start);
	start = report->used;
	append(report, rule->kind);
	append(report, IDM_TEXT(" "));
	if (rule->name_space.size) {
		append(report, rule->name_space);
		append(report, IDM_TEXT("/"));
	}
	append(report, rule->name);
	add_from(report, IDM_TEXT("policy"), start);
}

static void add_no_rule(struct report *report)
{
	add(report, IDM_TEXT("rule"), IDM_TEXT(""));
	add(report, IDM_TEXT("policy"), IDM_TEXT(""));
}

static struct idm_bytes verdict_name(const struct decision *decision)
{
	if (!decision->allowed)
		return IDM_TEXT("DROPPED");
	return decision_last(decision)->verdict == IDM_AUDIT ? IDM_TEXT("AUDIT") : IDM_TEXT("FORWARDED");
}

static struct idm_bytes at_name(uint8_t at)
{
	static const struct idm_bytes names[] = {
		[IDM_AT_NONE] = {"none", 4},
		[IDM_AT_L4] = {"l4", 2},
		[IDM_AT_PROXY] = {"proxy", 5},
		[IDM_AT_DIRECT] = {"direct", 6},
	};

	return at < sizeof(names) / sizeof(*names) ? names[at] : names[0];
}

void report_fill(struct report *ret, const struct idm_snapshot *snapshot, const struct decision *decision, bool again)
{
	const struct idm_verdict *verdict = decision_last(decision);
	struct view_rule rule;

	ret->count = 0;
	ret->used = 0;
	add(ret, IDM_TEXT("verdict"), verdict_name(decision));
	add(ret, IDM_TEXT("at"), at_name(verdict->at));
	add(ret, IDM_TEXT("decision"), (struct idm_bytes){ret->id, sizeof(ret->id)});
	add(ret, IDM_TEXT("direction"), decision->direction == IDM_EGRESS ? IDM_TEXT("egress") : IDM_TEXT("ingress"));
	add_number(ret, IDM_TEXT("revision"), decision->revision);
	add_number(ret, IDM_TEXT("source"), decision->source);
	add_number(ret, IDM_TEXT("destination"), decision->destination);
	if (verdict->drop_reason)
		add_number(ret, IDM_TEXT("drop"), verdict->drop_reason);
	else if (again)
		add(ret, IDM_TEXT("drop"), IDM_TEXT(""));
	if (verdict->entry != IDM_NONE)
		add_number(ret, IDM_TEXT("entry"), verdict->entry);
	else if (again)
		add(ret, IDM_TEXT("entry"), IDM_TEXT(""));
	if (snapshot && view_rule(snapshot, verdict->entry, verdict->http_rule, &rule))
		add_rule(ret, &rule);
	else if (again)
		add_no_rule(ret);
}
