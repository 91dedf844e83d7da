/* Counts the guest instructions of an aarch64 program under qemu-user, by class: a cost that repeats to the digit.
 *
 *   gcc -O2 -shared -fPIC count_instructions.c -o libcount_instructions.so
 *   qemu-aarch64 -cpu cortex-a76 -plugin ./libcount_instructions.so,out=counts.txt ./program ARGS
 *
 * For qemu 7.2 (plugin API version 1); single-threaded guests. The cost of one token is the difference of two runs
 * that differ only in the number of generated tokens, divided by that number. The prototypes below restate the part
 * of qemu's public plugin API that is used, so that no qemu header is needed.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb; struct qemu_plugin_insn; typedef struct qemu_info_t qemu_info_t;
enum { INLINE_ADD_U64 = 0 };
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, int op, void *counter, uint64_t add);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, void *), void *data);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum class { TOTAL, DOT, MMLA, SIMD_OTHER, LOAD_STORE, SIMD_LOAD_STORE, BRANCH, IMMEDIATE, REGISTER, OTHER, CLASSES };
static const char *const names[CLASSES] = { "total", "sdot/udot", "smmla", "simd_fp_other", "ldst_gpr", "ldst_simd",
                                            "branch", "dp_imm", "dp_reg", "other" };
static uint64_t count[CLASSES];
static const char *out_path;

static enum class classify(uint32_t w) {
    if ((w & 0x9F20FC00) == 0x0E009400 || (w & 0x9F00F400) == 0x0F00E000) return DOT;
    if ((w & 0xDFE0F400) == 0x4E80A400) return MMLA;
    unsigned op = (w >> 25) & 15;
    if ((op & 5) == 4) return (w >> 26) & 1 ? SIMD_LOAD_STORE : LOAD_STORE;
    if ((op & 7) == 7) return SIMD_OTHER;
    if ((op & 14) == 10) return BRANCH;
    if ((op & 14) == 8) return IMMEDIATE;
    if ((op & 7) == 5) return REGISTER;
    return OTHER;
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    for (size_t i = 0, n = qemu_plugin_tb_n_insns(tb); i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint32_t w; memcpy(&w, qemu_plugin_insn_data(insn), 4);
        qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD_U64, &count[TOTAL], 1);
        qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD_U64, &count[classify(w)], 1);
    }
}

static void on_exit_(qemu_plugin_id_t id, void *data) {
    (void)id; (void)data;
    FILE *f = out_path ? fopen(out_path, "a") : stderr;
    if (!f) return;
    for (int i = 0; i < CLASSES; i++) fprintf(f, "%s%s=%llu", i ? " " : "", names[i], (unsigned long long)count[i]);
    fputc('\n', f);
    if (out_path) fclose(f);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) if (!strncmp(argv[i], "out=", 4)) out_path = strdup(argv[i] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
    return 0;
}
