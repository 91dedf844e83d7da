/* Runs llama.cpp on tokens as the other programs here run their engines: a prompt of made-up tokens, then greedy tokens.
 *
 *   llama_cpp MODEL.gguf PROMPT_TOKENS NEW_TOKENS [THREADS [REPEATS [FLASH_ATTENTION]]]
 *
 * Without REPEATS it runs once, cold, and prints "first token" as soon as it has one: for instruction counts, memory
 * and the time from process start. With REPEATS it warms up, then runs REPEATS times and prints a line of JSON for
 * each: seconds of wall clock and of CPU time for the prompt, and for all new tokens together.
 *
 * llama.cpp's own defaults hold where they are its fastest: weights mapped, then repacked for this CPU; batches of
 * 512; f16 keys and values; logits of the last position only.
 */
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 512, WARM_UP_TOKENS = 512 };

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void append(struct llama_context *context, llama_token *tokens, int count) {
    if (llama_decode(context, llama_batch_get_one(tokens, count))) {
        fputs("llama_decode failed\n", stderr);
        exit(1);
    }
}

static llama_token most_likely(struct llama_context *context, int vocabulary) {
    const float *logits = llama_get_logits_ith(context, -1);
    int best = 0;
    for (int token = 1; token < vocabulary; token++)
        if (logits[token] > logits[best]) best = token;
    return best;
}

struct run {
    double prompt_s, prompt_cpu_s, new_s, new_cpu_s;
};

static struct run run(struct llama_context *context, llama_token *prompt, int prompt_tokens, int new_tokens,
                      int vocabulary, int say_first) {
    struct run result;
    llama_memory_clear(llama_get_memory(context), true);
    double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (int done = 0; done < prompt_tokens; done += BATCH)
        append(context, prompt + done, prompt_tokens - done < BATCH ? prompt_tokens - done : BATCH);
    llama_token token = most_likely(context, vocabulary);
    result.prompt_s = seconds(CLOCK_MONOTONIC) - wall;
    result.prompt_cpu_s = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    if (say_first) {
        puts("first token");
        fflush(stdout);
    }
    wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (int index = 0; index < new_tokens; index++) {
        append(context, &token, 1);
        token = most_likely(context, vocabulary);
    }
    result.new_s = seconds(CLOCK_MONOTONIC) - wall;
    result.new_cpu_s = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    return result;
}

int main(int count, char **arguments) {
    if (count == 2 && !strcmp(arguments[1], "--system")) {
        puts(llama_print_system_info());
        return 0;
    }
    if (count < 4) {
        fputs("llama_cpp MODEL.gguf PROMPT_TOKENS NEW_TOKENS [THREADS [REPEATS [FLASH_ATTENTION]]]\n", stderr);
        return 2;
    }
    const int prompt_tokens = atoi(arguments[2]), new_tokens = atoi(arguments[3]);
    const int threads = count > 4 ? atoi(arguments[4]) : 1;
    const int repeats = count > 5 ? atoi(arguments[5]) : 0;
    const int flash_attention = count > 6 ? atoi(arguments[6]) : 1;

    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params model_parameters = llama_model_default_params();
    struct llama_model *model = llama_model_load_from_file(arguments[1], model_parameters);
    if (!model) return 1;
    struct llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = prompt_tokens + new_tokens;
    parameters.n_batch = 512;
    parameters.n_ubatch = 512;
    parameters.n_threads = threads;
    parameters.n_threads_batch = threads;
    parameters.flash_attn_type =
        flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *context = llama_init_from_model(model, parameters);
    if (!context) return 1;

    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_token *prompt = malloc(sizeof *prompt * (prompt_tokens + 1));
    if (!prompt) return 1;
    for (int index = 0; index < prompt_tokens; index++)
        prompt[index] = (int)((unsigned)index * 7919u % (unsigned)vocabulary);

    if (repeats)
        run(context, prompt, prompt_tokens < WARM_UP_TOKENS ? prompt_tokens : WARM_UP_TOKENS, 0, vocabulary, 0);
    else
        run(context, prompt, prompt_tokens, new_tokens, vocabulary, 1);
    for (int repeat = 0; repeat < repeats; repeat++) {
        struct run timed = run(context, prompt, prompt_tokens, new_tokens, vocabulary, 0);
        printf("{\"prompt_s\": %.9f, \"prompt_cpu_s\": %.9f, \"new_s\": %.9f, \"new_cpu_s\": %.9f}\n",
               timed.prompt_s, timed.prompt_cpu_s, timed.new_s, timed.new_cpu_s);
        fflush(stdout);
    }
    free(prompt);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
