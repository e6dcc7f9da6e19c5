/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kafka requests: allowed if some list without rules covers them, or if every topic is covered by a rule of any list
 * of this port or of no port, see policy-semantics 14.
 */
#include "decide.h"

/* A request may name many topics, and each is looked for in all rules: more than this is refused. */
#define TOPICS_MAX 1024

/* Keys whose requests name topics: 0-6, 8, 9, 19-21, 23, 24, 27, 28, 34, 35, 37. */
#define KEYS(first, last) (((1ull << ((last) - (first) + 1)) - 1) << (first))
static const uint64_t topic_keys = KEYS(0, 6) | KEYS(8, 9) | KEYS(19, 21) | KEYS(23, 24) | KEYS(27, 28) |
				   KEYS(34, 35) | KEYS(37, 37);

static bool bears_topics(int32_t api_key)
{
	return api_key >= 0 && api_key < 64 && topic_keys >> api_key & 1;
}

static bool rule_fits(const struct idm_policies *policies, const struct idm_kafka_rule *rule,
		      const struct idm_kafka *kafka)
{
	if (rule->api_keys != UINT64_MAX &&
	    (kafka->api_key < 0 || kafka->api_key > 63 || !(rule->api_keys >> kafka->api_key & 1)))
		return false;
	if (rule->api_version != -1 && rule->api_version != kafka->api_version)
		return false;
	return !rule->client_id.size || idm_bytes_equal(idm_text(policies->strings, rule->client_id), kafka->client_id);
}

// topic NULL: does the list hold the request whatever its topics are?
static bool list_holds(const struct idm_policies *policies, const struct idm_entry *entry,
		       const struct idm_kafka *kafka, const struct idm_bytes *topic)
{
	const struct idm_kafka_set *set;

	if (entry->verdict == IDM_ENTRY_ALLOW)
		return true;
	if (entry->l7 != IDM_L7_KAFKA)
		return false;
	if (entry->l7_set == IDM_NONE)
		return true;
	set = &policies->kafka_sets[entry->l7_set];
	for (uint32_t i = 0; i < set->rule_count; i++) {
		const struct idm_kafka_rule *rule = &policies->kafka_rules[set->first_rule + i];

		if (!rule_fits(policies, rule, kafka))
			continue;
		if (!rule->topic.size || !bears_topics(kafka->api_key))
			return true;
		if (topic && idm_bytes_equal(idm_text(policies->strings, rule->topic), *topic))
			return true;
	}
	return false;
}

static bool some_list_holds(const struct idm_look *look, uint32_t floor, const struct idm_kafka *kafka,
			    const struct idm_bytes *topic, struct idm_winner *ret)
{
	const uint32_t counts = IDM_ENTRY_FLAG_EXACT_PORT | IDM_ENTRY_FLAG_PORT_WILDCARD;
	struct idm_walk walk;
	struct idm_refs list;

	*ret = (struct idm_winner){.index = IDM_NONE};
	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];

			if (entry->precedence < floor)
				break;
			if (entry->flags & counts && idm_reachable(look, entry) &&
			    list_holds(look->policies, entry, kafka, topic))
				idm_winner_offer(ret, entry, list.refs[i], &list);
		}
	}
	return ret->entry;
}

bool idm_kafka_allowed(const struct idm_look *look, const struct idm_kafka *kafka, struct idm_winner *ret)
{
	uint32_t floor = idm_deny_floor(look);

	if (some_list_holds(look, floor, kafka, NULL, ret))
		return true;
	// No topic named: a rule with a topic cannot cover "all of them".
	if (!bears_topics(kafka->api_key) || !kafka->topic_count || kafka->topic_count > TOPICS_MAX)
		return false;
	for (size_t i = 0; i < kafka->topic_count; i++)
		if (!some_list_holds(look, floor, kafka, &kafka->topics[i], ret))
			return false;
	return true;
}
