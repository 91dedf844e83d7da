package io.niwaki

import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.toList
import java.io.File

/** The demo model, built by the niwaki command. */
val demoModel = File(System.getProperty("niwaki.model"))

/** A few threads less to fight over on small machines. */
val oneThread = OpenOptions { threads = 1 }

suspend fun <R> withEngine(options: OpenOptions = oneThread, use: suspend (Engine) -> R): R =
    Engine.open(demoModel, options).use { use(it) }

/** Threads that generate, as the system sees them. */
fun generatingThreads(): Int = File("/proc/self/task").listFiles().orEmpty().count { thread ->
    runCatching { File(thread, "comm").readText().trim() == "niwaki" }.getOrDefault(false)
}

/** Waits for a condition that is about to hold. */
suspend fun eventually(what: String, holds: () -> Boolean) {
    repeat(2000) {
        if (holds()) return
        delay(5)
    }
    error("it never came that $what")
}

/** The work of a stream ends before its flow does; its thread leaves the system's list a moment later. */
suspend fun nothingGenerates() = eventually("no thread generates") { generatingThreads() == 0 }

suspend fun Flow<Token>.texts(): List<String> = toList().map { it.text }
