/* The maps, what the programs count, and the limits that they apply. fastpath.h has the contents of the maps. */
#pragma once

#define SECOND 1000000000ULL /* nanoseconds */
#define LIMIT_WINDOW (SECOND / 10)
#define PAY_ATTEMPTS 4

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SESSIONS);
	__type(key, struct session_key);
	__type(value, struct session);
} sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SESSIONS);
	__type(key, be32);
	__type(value, struct session_key);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_SESSIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct route_key);
	__type(value, struct session_key);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_INTERFACES);
	__type(key, __u32); /* index */
	__type(value, __u32);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SESSIONS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TOTALS);
	__type(key, __u32);
	__type(value, __u64);
} totals SEC(".maps");

/* Nothing interrupts a program on its processor that could run one of them: plain addition is exact. */
static __always_inline void add(__u32 total, __u64 amount)
{
	__u64 *value = bpf_map_lookup_elem(&totals, &total);

	if (value)
		*value += amount;
}

static __always_inline int pass(__u32 reason)
{
	add(reason, 1);
	return NEXT;
}

/* Return the settings if the programs may carry anything: they are enabled, and the server was alive not long ago. */
static __always_inline struct settings *active(void)
{
	__u32 first = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &first);

	if (!now || !(now->flags & ENABLED))
		return 0;
	/* Signed: the coarse clock is some milliseconds behind the clock of the beat. */
	if (now->patience && (__s64)(bpf_ktime_get_coarse_ns() - now->beat - now->patience) > 0)
		return 0;
	return now;
}

static __always_inline struct counters *counters_of(const struct session *session)
{
	__u32 slot = session->slot;

	return bpf_map_lookup_elem(&counters, &slot);
}

/* Count packets that are carried. Return how many were carried before. */
static __always_inline __u64 count(struct direction *direction, __u32 packets, __u32 octets)
{
	__sync_fetch_and_add(&direction->octets, octets);
	direction->last = bpf_ktime_get_coarse_ns();
	return __sync_fetch_and_add(&direction->packets, packets);
}

/* Pay for some octets (GCRA). Return 0 if the rate does not allow them now: then nothing is paid.
 *
 * `ready` advances by the price of each packet and may not pass the present. It is never further behind than the burst,
 * so time that was not used is worth no more than that. Whatever the rate was before, a new one applies at once.
 * A packet that costs more than the burst (a super-packet at a low rate) passes when all of the burst is there, and the
 * debt delays the next one: otherwise it could never pass.
 */
static __noinline int pay(struct direction *direction, __u32 cost, __u32 burst, __u32 octets)
{
	__u64 price = (__u64)octets * cost >> 10;
	__u64 saved = (__u64)burst * 1000;
	__u64 now = bpf_ktime_get_ns();
	__u64 oldest = now - saved;

	for (int attempt = 0; attempt < PAY_ATTEMPTS; attempt++) {
		__u64 ready = direction->ready;
		int full = (__s64)(oldest - ready) >= 0;
		__u64 paid = (full ? oldest : ready) + price;

		if ((__s64)(paid - now) > 0 && !(full && price > saved))
			return 0;
		if (__sync_val_compare_and_swap(&direction->ready, ready, paid) == ready)
			return 1;
	}
	__sync_fetch_and_add(&direction->ready, price); /* other processors were quicker each time */
	return 1;
}

static __always_inline __u32 present_window(void)
{
	return bpf_ktime_get_ns() / LIMIT_WINDOW;
}

/* Return 1 if packet_limit is used up. A super-packet passes as a whole if its first packet may. */
static __always_inline int is_limited(const struct direction *direction, __u32 limit, __u32 window)
{
	return limit && direction->window == window && direction->window_packets >= limit;
}

/* Count packets against packet_limit. Two processors that begin a window at once may forget some. */
static __always_inline void use_limit(struct direction *direction, __u32 window, __u32 packets)
{
	if (direction->window != window) {
		direction->window = window;
		direction->window_packets = 0;
	}
	__sync_fetch_and_add(&direction->window_packets, packets);
}
