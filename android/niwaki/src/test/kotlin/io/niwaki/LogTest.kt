package io.niwaki

import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.util.concurrent.CopyOnWriteArrayList

class LogTest {
    private val lines = CopyOnWriteArrayList<String>()

    @AfterEach
    fun silence() = LogSink.set(LogLevel.Error, null)

    @Test
    fun `lines come with level and module and without the user's text`() = runBlocking<Unit> {
        LogSink.set(LogLevel.Trace) { level, target, message -> lines += "$level $target $message" }
        withEngine { it.generate("my secret", GenerateOptions { maxNewTokens = 3 }).collect() }
        assertTrue(lines.any { it.startsWith("Info niwaki") && "opened" in it }) { "$lines" }
        assertTrue(lines.none { "secret" in it }) { "$lines" }
    }

    @Test
    fun `lines above the level stay away`() = runBlocking<Unit> {
        LogSink.set(LogLevel.Error) { level, target, message -> lines += "$level $target $message" }
        withEngine {}
        assertEquals(emptyList<String>(), lines)
    }

    @Test
    fun `a sink that throws disturbs nothing`() = runBlocking<Unit> {
        LogSink.set(LogLevel.Trace) { _, _, _ -> error("no space left") }
        withEngine { it.generate("Once", GenerateOptions { maxNewTokens = 3 }).collect() }
    }
}
