// SPDX-License-Identifier: Apache-2.0
// Patterns that are plain texts: found by one hash of the whole text.
#include "literals.h"

#include <string.h>

#include "cost.h"
#include "idmesh/automaton.h"
#include "idmesh/engine.h"
#include "idmesh/matcher.h"
#include "idmesh/snapshot.h"

// So few are compared one by one.
#define LIST_MAX 3u

struct text {
	uint32_t offset;
	uint32_t size;
	uint32_t outcome;
	uint64_t hash;
};

static struct text write_text(struct blob *blob, const struct pattern *pattern)
{
	// One byte in front, so that an empty text has an offset too and strings stay apart.
	struct text text = {.offset = blob_add(blob, 0, 1), .outcome = pattern->outcome};

	for (size_t at = 0; at < pattern->code.size; at += code_size(pattern->code.at + at)) {
		for (uint32_t i = 0; i < pattern->code.at[at + 1]; i++) {
			uint32_t offset = blob_add(blob, 1, 1);

			*(uint8_t *)blob_at(blob, offset) = (uint8_t)pattern->code.at[at + 2 + i];
			text.size++;
		}
	}
	text.hash = idm_hash64(0, blob_at(blob, text.offset), text.size);
	return text;
}

static bool same_text(struct blob *blob, const struct text *text, const struct idm_literal *slot)
{
	return slot->text && slot->size == text->size && slot->hash == text->hash >> 32 &&
	       !memcmp(blob_at(blob, slot->text), blob_at(blob, text->offset), text->size);
}

// Returns the number of slots looked at.
static uint32_t place(struct blob *blob, uint32_t slots, uint32_t mask, const struct text *text)
{
	for (uint32_t probe = 0;; probe++) {
		struct idm_literal *slot =
			(struct idm_literal *)blob_at(blob, slots) + ((text->hash + probe) & mask);

		if (same_text(blob, text, slot))
			return probe + 1; // an earlier pattern is the same
		if (slot->text)
			continue;
		*slot = (struct idm_literal){
			.hash = (uint32_t)(text->hash >> 32), .text = text->offset, .size = text->size,
			.outcome = text->outcome,
		};
		return probe + 1;
	}
}

uint64_t literals_write(struct blob *blob, const struct pattern *const *patterns, uint32_t count)
{
	struct text *texts = pool_alloc(blob->pool, count * sizeof(*texts));
	uint32_t slot_count = count, longest = 0, probes = 0, slots;
	struct idm_matcher_body *body;

	if (count > LIST_MAX) {
		for (slot_count = 8; slot_count < count * 2; slot_count *= 2)
			;
	}
	for (uint32_t i = 0; i < count; i++) {
		texts[i] = write_text(blob, patterns[i]);
		longest = texts[i].size > longest ? texts[i].size : longest;
	}
	slots = blob_add(blob, slot_count * sizeof(struct idm_literal), 8);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t used;

		if (count <= LIST_MAX) {
			((struct idm_literal *)blob_at(blob, slots))[i] = (struct idm_literal){
				.text = texts[i].offset, .size = texts[i].size, .outcome = texts[i].outcome,
			};
			continue;
		}
		used = place(blob, slots, slot_count - 1, &texts[i]);
		probes = used > probes ? used : probes;
	}
	body = blob_at(blob, sizeof(struct idm_matcher));
	body->literals = slots;
	body->literal_count = slot_count;
	body->literal_probes = count > LIST_MAX ? probes : 0;
	body->literal_max = longest;
	pool_free(blob->pool, texts, count * sizeof(*texts));
	return cost_literals(longest);
}
