package io.niwaki

import kotlinx.coroutines.runBlocking
import java.io.File

/** How many times [main] asks. */
const val WAYS_IN = 5

/** Asks for everything that comes before there is an engine, and prints which exceptions came. */
fun main(arguments: Array<String>) {
    val model = File(arguments.single())
    val ways = listOf<suspend () -> Any>(
        { Engine.open(model) },
        { Engine.open(model) },
        { Engine.plan(fd = 0) },
        { Router.create(endpoint = Endpoint("https://api.example.com", "large")) },
        { LogSink.set(LogLevel.Trace) { _, _, _ -> } },
    )
    check(ways.size == WAYS_IN)
    for (ask in ways) {
        val result = runBlocking { runCatching { ask() } }
        println(result.exceptionOrNull()?.javaClass?.simpleName)
    }
}
