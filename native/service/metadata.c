// SPDX-License-Identifier: Apache-2.0
// What is said of a verdict beside the answer: a Struct of texts, last field first (wire.h).
#include <stdio.h>

#include "metadata.h"

static void put_struct_entry(struct wire_writer *writer, struct idm_bytes key, const uint8_t *end)
{
	wire_close(writer, 2, end); // the map entry's value: a Value written since end
	wire_put_bytes(writer, 1, key);
	wire_close(writer, 1, end); // Struct.fields
}

static void put_text(struct wire_writer *writer, struct idm_bytes key, struct idm_bytes value)
{
	const uint8_t *end = writer->start;

	wire_put_bytes(writer, 3, value); // Value.string_value
	put_struct_entry(writer, key, end);
}

static void put_decimal(struct wire_writer *writer, struct idm_bytes key, uint64_t value)
{
	char digits[21];
	int size = snprintf(digits, sizeof(digits), "%llu", (unsigned long long)value);

	put_text(writer, key, (struct idm_bytes){ digits, size });
}

// Some text with something in between, written backwards: "a" + mark + "b".
struct joined {
	struct wire_writer *writer;
	struct idm_bytes key;
	const uint8_t *end;
};

static struct joined join_open(struct wire_writer *writer, struct idm_bytes key)
{
	return (struct joined){ writer, key, writer->start };
}

static void join_close(struct joined *joined)
{
	wire_close(joined->writer, 3, joined->end);
	put_struct_entry(joined->writer, joined->key, joined->end);
}

static void join_put(struct joined *joined, struct idm_bytes text)
{
	wire_put(joined->writer, text.ptr, text.size);
}

static struct idm_bytes rule_text(const struct idm_snapshot *snapshot, struct idm_string text)
{
	return judge_string(snapshot, IDM_TABLE_POLICIES, IDM_POL_STRINGS, text);
}

// Where the winning HTTP rule, or else the winning entry, was written.
static const struct idm_rule *find_rule(const struct idm_snapshot *snapshot, const struct idm_verdict *verdict)
{
	size_t rules, count;
	const struct idm_rule *list = judge_section(snapshot, IDM_TABLE_POLICIES, IDM_POL_RULES, &rules);
	const struct idm_http_rule *http = judge_section(snapshot, IDM_TABLE_POLICIES, IDM_POL_HTTP_RULES, &count);
	const struct idm_entry *entries;
	const uint32_t *origins;
	uint32_t at;

	if (verdict->http_rule < count)
		return http[verdict->http_rule].rule < rules ? &list[http[verdict->http_rule].rule] : NULL;
	entries = judge_section(snapshot, IDM_TABLE_POLICIES, IDM_POL_ENTRIES, &count);
	if (verdict->entry >= count || !entries[verdict->entry].origin_count)
		return NULL;
	at = entries[verdict->entry].first_origin;
	origins = judge_section(snapshot, IDM_TABLE_POLICIES, IDM_POL_ORIGINS, &count);
	return at < count && origins[at] < rules ? &list[origins[at]] : NULL;
}

static void put_rule(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct idm_rule *rule)
{
	struct idm_bytes space = rule_text(snapshot, rule->name_space);
	char line[12];
	struct joined text = join_open(writer, BYTES("rule"));

	join_put(&text, (struct idm_bytes){ line, snprintf(line, sizeof(line), ":%u", rule->line) });
	join_put(&text, rule_text(snapshot, rule->file));
	join_close(&text);
	text = join_open(writer, BYTES("policy"));
	join_put(&text, rule_text(snapshot, rule->name));
	if (space.size) {
		join_put(&text, BYTES("/"));
		join_put(&text, space);
	}
	join_put(&text, BYTES(" "));
	join_put(&text, rule_text(snapshot, rule->kind));
	join_close(&text);
}

static struct idm_bytes verdict_text(const struct judged *judged)
{
	if (!judged->allowed)
		return BYTES("DROPPED");
	return judged->audit ? BYTES("AUDIT") : BYTES("FORWARDED");
}

static struct idm_bytes at_text(uint32_t at)
{
	static const struct idm_bytes texts[] = { [IDM_AT_NONE] = BYTES("none"), [IDM_AT_L4] = BYTES("l4"),
						  [IDM_AT_PROXY] = BYTES("proxy"), [IDM_AT_DIRECT] = BYTES("direct") };

	return texts[at <= IDM_AT_DIRECT ? at : IDM_AT_NONE];
}

static struct idm_bytes error_text(uint32_t error)
{
	static const struct idm_bytes texts[] = {
		[IDM_CHECK_MALFORMED] = BYTES("malformed request"),
		[IDM_CHECK_NO_SNAPSHOT] = BYTES("no snapshot in force"),
		[IDM_CHECK_NO_PEER] = BYTES("peer without address"),
		[IDM_CHECK_DISAGREE] = BYTES("evidence of the peer disagrees or is missing"),
		[IDM_CHECK_NO_DESTINATION] = BYTES("unknown endpoint"),
		[IDM_CHECK_ENGINE] = BYTES("engine refused the flow"),
		[IDM_CHECK_TOO_LARGE] = BYTES("response too large"),
	};

	return error <= IDM_CHECK_TOO_LARGE ? texts[error] : BYTES("internal");
}

static void put_verdict(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct judged *judged)
{
	const struct idm_verdict *verdict = &judged->verdicts[judged->shown];
	const struct idm_rule *rule = find_rule(snapshot, verdict);

	put_text(writer, BYTES("at"), at_text(verdict->at));
	if (verdict->auth >= IDM_AUTH_REQUIRED)
		put_text(writer, BYTES("auth"),
			 verdict->auth == IDM_AUTH_REQUIRED ? BYTES("required") : BYTES("test-always-fail"));
	if (verdict->entry != IDM_NONE)
		put_decimal(writer, BYTES("entry"), verdict->entry);
	if (rule)
		put_rule(writer, snapshot, rule);
}

void metadata_put(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct judged *judged,
		  const char decision_id[32])
{
	put_text(writer, BYTES("decision"), (struct idm_bytes){ decision_id, 32 });
	put_text(writer, BYTES("verdict"), verdict_text(judged));
	put_text(writer, BYTES("direction"), judged->direction == IDM_EGRESS ? BYTES("egress") : BYTES("ingress"));
	if (judged->drop_reason)
		put_decimal(writer, BYTES("drop"), judged->drop_reason);
	if (judged->error)
		put_text(writer, BYTES("error"), error_text(judged->error));
	if (snapshot) {
		put_decimal(writer, BYTES("revision"), idm_snapshot_revision(snapshot));
		put_decimal(writer, BYTES("source"), judged->source.identity);
		put_decimal(writer, BYTES("destination"), judged->destination.identity);
	}
	if (judged->count)
		put_verdict(writer, snapshot, judged);
}
