package io.niwaki

import io.niwaki.readme.answer
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.io.File

/** What the project's README shows. */
class ReadmeTest {
    private val chatModel = File(System.getProperty("niwaki.chatModel"))

    @Test
    fun `the program of the readme streams a reply`() = runBlocking<Unit> {
        val pieces = mutableListOf<String>()
        coroutineScope { answer(chatModel, "Who was the king?") { pieces += it } }
        assertTrue(pieces.size > 2) { "$pieces" }
    }

    @Test
    fun `the program of the readme can be cancelled`() = runBlocking<Unit> {
        val begun = CompletableDeferred<Unit>()
        val job = answer(chatModel, "Who was the king?") { begun.complete(Unit) }
        begun.await()
        job.cancelAndJoin()
        nothingGenerates()
    }
}
