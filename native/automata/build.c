// SPDX-License-Identifier: Apache-2.0
// Patterns to a matcher: literals to a hash, the others to as few automata as can be built within the limits.
// A union that grows too large is halved until it does not; what is too large alone is refused by name.
#include <stdlib.h>
#include <string.h>

#include "automata.cdef.h"
#include "cost.h"
#include "dfa.h"
#include "emit.h"
#include "idmesh/automaton.h"
#include "idmesh/matcher.h"
#include "idmesh/snapshot.h"
#include "literals.h"

// One automaton may take 16.5 us of the 20 us a decision may take; a union that would take more is halved. All of a
// matcher may take eight times that: the compiler then has the engine refuse texts too long to be judged in time
// (struct idm_side.text_max). idm_matcher.cost is in units of COST_UNIT_PS.
#define UNION_COST_PS ((uint64_t)16500000)
#define COST_LIMIT (uint32_t)(8 * UNION_COST_PS / COST_UNIT_PS)
#define AUTOMATA_MAX 16u
#define BLOB_MAX ((size_t)32 << 20)
// What one union, and the whole build, may use. Steps of the subset construction: about 10 ns each.
#define UNION_BYTES ((size_t)256 << 20)
#define UNION_INSTRUCTIONS (2u << 20)
#define UNION_STATES (4u << 20)
// An honest union takes some hundred for each instruction.
#define UNION_STEPS 2000000u
#define UNION_STEPS_EACH 300u
#define BUILD_STEPS 150000000u

enum bucket { FORWARD, BACKWARD, SCAN, BUCKETS };

struct build {
	struct blob blob;
	uint64_t steps;
	uint64_t cost_ps;
	uint64_t worst_ps; // of one automaton
	uint32_t worst_pattern;
	VEC(struct idm_automaton) automata;
	VEC(const struct pattern *) buckets[BUCKETS];
	VEC(const struct pattern *) literals;
	uint64_t last_ps; // of the union tried last, 0 if it was not finished
	struct idm_build_result *result;
};

// Anchors at the ends say nothing in a full match.
static struct code strip(struct code code)
{
	size_t at = 0, last = 0;

	while (code.size && code.at[0] == CODE_ASSERT && code.at[1] == ASSERT_BEGIN_TEXT) {
		code.at += 2;
		code.size -= 2;
	}
	for (;;) {
		for (at = last = 0; at < code.size; at += code_size(code.at + at))
			last = at;
		if (!code.size || code.at[last] != CODE_ASSERT || code.at[last + 1] != ASSERT_END_TEXT)
			return code;
		code.size = last;
	}
}

static bool is_literal(struct code code)
{
	for (size_t at = 0; at < code.size; at += code_size(code.at + at)) {
		if (code.at[at] != CODE_LITERAL)
			return false;
	}
	return true;
}

// Forward, unless a scan would begin at once; then backward, unless one begins there too.
static enum bucket choose(struct pattern *pattern)
{
	uint32_t literal = 0;
	bool early = false, wide = false;

	for (size_t at = 0; at < pattern->code.size; at += code_size(pattern->code.at + at)) {
		const uint32_t *element = pattern->code.at + at;

		wide = code_is_wide(element);
		if (wide && at + code_size(element) < pattern->code.size) {
			early |= !pattern->wide && literal < 2;
			pattern->wide++;
		}
		literal += element[0] == CODE_LITERAL ? element[1] : 0;
	}
	return !early ? FORWARD : wide ? SCAN : BACKWARD;
}

static void classify(struct build *build, struct pattern *pattern)
{
	struct pool *pool = build->blob.pool;

	pattern->code = strip(pattern->code);
	pattern->clean = code_is_clean(pattern->code);
	if (is_literal(pattern->code)) {
		*VEC_ADD(pool, build->literals) = pattern;
	} else {
		enum bucket bucket = choose(pattern);

		*VEC_ADD(pool, build->buckets[bucket]) = pattern;
	}
}

static void add_automaton(struct build *build, struct pool *pool, const struct pattern *const *patterns,
			  uint32_t count, bool backward)
{
	struct nfa nfa = {.pool = pool, .backward = backward, .limit = UNION_INSTRUCTIONS};
	struct dfa dfa = {.nfa = &nfa, .pool = pool, .state_limit = UNION_STATES};
	uint64_t steps, left, cost;
	struct idm_automaton automaton = {.flags = backward ? IDM_AUTOMATON_BACKWARD : 0};

	build->last_ps = 0;
	trie_compile(&nfa, patterns, count);
	steps = UNION_STEPS + UNION_STEPS_EACH * (uint64_t)nfa.code.count;
	steps = steps < build->steps ? steps : build->steps;
	// Spent also if the union is given up.
	build->steps -= steps;
	left = steps;
	dfa.work = &left;
	dfa_build(&dfa);
	build->steps += left;
	automaton.classes = dfa.classes;
	automaton.start = emit_automaton(&build->blob, &dfa, &automaton.map, &cost);
	build->last_ps = cost;
	// A single pattern cannot be halved: the sum decides.
	if ((count > 1 && cost > UNION_COST_PS) || cost > (uint64_t)COST_LIMIT * COST_UNIT_PS ||
	    build->blob.bytes.count > BLOB_MAX)
		longjmp(*pool->fail, 1);
	*VEC_ADD(build->blob.pool, build->automata) = automaton;
	build->cost_ps += cost;
	if (cost > build->worst_ps) {
		build->worst_ps = cost;
		build->worst_pattern = patterns[0]->outcome;
	}
}

// True if the union was added; false if it is too large, and then nothing was.
static bool try_union(struct build *build, const struct pattern *const *patterns, uint32_t count, bool backward)
{
	size_t bytes = build->blob.bytes.count, tables = build->blob.tables.count;
	jmp_buf fail, *outer = build->blob.pool->fail;
	volatile bool added = false;
	struct pool pool;

	pool_init(&pool, UNION_BYTES, &fail);
	build->blob.pool->fail = &fail;
	if (!setjmp(fail)) {
		add_automaton(build, &pool, patterns, count, backward);
		added = true;
	} else {
		build->blob.bytes.count = bytes;
		build->blob.tables.count = tables;
	}
	build->blob.pool->fail = outer;
	pool_deinit(&pool);
	return added;
}

static int refuse(struct build *build, int error, uint32_t pattern, uint64_t cost_ps)
{
	build->result->pattern = pattern;
	build->result->cost = (uint32_t)((cost_ps + COST_UNIT_PS - 1) / COST_UNIT_PS);
	return error;
}

static int add_union(struct build *build, const struct pattern *const *patterns, uint32_t count, bool backward)
{
	int error;

	if (!count)
		return IDM_BUILD_OK;
	if (build->automata.count == AUTOMATA_MAX || build->cost_ps > (uint64_t)COST_LIMIT * COST_UNIT_PS)
		return refuse(build, IDM_BUILD_COST, patterns[0]->outcome, build->cost_ps);
	if (try_union(build, patterns, count, backward))
		return IDM_BUILD_OK;
	if (count == 1) {
		uint64_t cost_ps = build->last_ps;

		if (try_union(build, patterns, count, !backward))
			return IDM_BUILD_OK;
		if (!cost_ps || (build->last_ps && build->last_ps < cost_ps))
			cost_ps = build->last_ps;
		error = cost_ps > (uint64_t)COST_LIMIT * COST_UNIT_PS ? IDM_BUILD_COST : IDM_BUILD_SIZE;
		return refuse(build, error, patterns[0]->outcome, cost_ps);
	}
	error = add_union(build, patterns, count / 2, backward);
	return error ? error : add_union(build, patterns + count / 2, count - count / 2, backward);
}

// Patterns with more scans apart from those with fewer, in case the union must be halved.
static int compare_wide(const void *a, const void *b)
{
	const struct pattern *x = *(const struct pattern *const *)a, *y = *(const struct pattern *const *)b;

	if (x->wide != y->wide)
		return x->wide < y->wide ? -1 : 1;
	return x->outcome < y->outcome ? -1 : 1;
}

static int build_automata(struct build *build)
{
	for (int bucket = 0; bucket < BUCKETS; bucket++) {
		uint32_t size = (uint32_t)build->buckets[bucket].count;
		int error;

		if (size)
			qsort(build->buckets[bucket].at, size, sizeof(void *), compare_wide);
		error = add_union(build, build->buckets[bucket].at, size, bucket == BACKWARD);
		if (error)
			return error;
	}
	build->cost_ps += build->blob.rests ? cost_shared() : 0;
	if (build->cost_ps > (uint64_t)COST_LIMIT * COST_UNIT_PS)
		return refuse(build, IDM_BUILD_COST, build->worst_pattern, build->cost_ps);
	return IDM_BUILD_OK;
}

static int finish(struct build *build, uint32_t outcomes)
{
	struct blob *blob = &build->blob;
	uint32_t count = (uint32_t)build->automata.count, automata = 0;
	struct idm_matcher *head;
	struct idm_matcher_body *body;

	if (count) {
		automata = blob_add(blob, count * sizeof(struct idm_automaton), 8);
		memcpy(blob_at(blob, automata), build->automata.at, count * sizeof(struct idm_automaton));
	}
	blob_add(blob, 0, 8);
	head = blob_at(blob, 0);
	body = (struct idm_matcher_body *)(head + 1);
	body->automata = automata;
	body->automaton_count = count;
	*head = (struct idm_matcher){
		.magic = IDM_MATCHER_MAGIC, .size = (uint32_t)blob->bytes.count, .outcomes = outcomes,
		.cost = (uint32_t)((build->cost_ps + COST_UNIT_PS - 1) / COST_UNIT_PS),
	};
	build->result->blob = malloc(blob->bytes.count);
	if (!build->result->blob)
		return IDM_BUILD_MEMORY;
	memcpy(build->result->blob, blob->bytes.at, blob->bytes.count);
	build->result->size = head->size;
	build->result->cost = head->cost;
	build->result->shared = blob->rests ? (uint32_t)(cost_shared() / COST_UNIT_PS) : 0;
	build->result->automata = count;
	return IDM_BUILD_OK;
}

static int run(struct build *build, const uint32_t *code, const uint32_t *sizes, uint32_t count)
{
	struct pattern *patterns = pool_alloc(build->blob.pool, count * sizeof(*patterns));
	size_t at = 0;
	int error;

	blob_add(&build->blob, sizeof(struct idm_matcher) + sizeof(struct idm_matcher_body), 8);
	for (uint32_t i = 0; i < count; at += sizes[i++]) {
		patterns[i] = (struct pattern){.code = {.at = code + at, .size = sizes[i]}, .outcome = i};
		classify(build, &patterns[i]);
	}
	if (build->literals.count)
		build->cost_ps += literals_write(&build->blob, build->literals.at, (uint32_t)build->literals.count);
	error = build_automata(build);
	return error ? error : finish(build, count);
}

int idm_matcher_build(const uint32_t *code, const uint32_t *sizes, uint32_t count, struct idm_build_result *ret)
{
	struct build build = {.steps = BUILD_STEPS, .result = ret};
	struct pool pool;
	jmp_buf fail;
	int error;

	*ret = (struct idm_build_result){.pattern = IDM_NONE, .limit = COST_LIMIT};
	pool_init(&pool, UNION_BYTES, &fail);
	build.blob.pool = &pool;
	error = setjmp(fail);
	if (!error)
		error = run(&build, code, sizes, count);
	else
		error = error == 1 ? IDM_BUILD_SIZE : IDM_BUILD_MEMORY;
	pool_deinit(&pool);
	return error;
}

void idm_matcher_free(uint8_t *blob)
{
	free(blob);
}
