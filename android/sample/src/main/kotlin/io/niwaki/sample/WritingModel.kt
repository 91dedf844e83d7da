package io.niwaki.sample

import android.app.ActivityManager
import android.app.Application
import android.content.Context
import android.net.Uri
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.setValue
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import io.niwaki.Chat
import io.niwaki.Engine
import io.niwaki.GenerateOptions
import io.niwaki.MemoryPlan
import io.niwaki.NiwakiException
import io.niwaki.OpenOptions
import io.niwaki.Token
import io.niwaki.open
import io.niwaki.plan
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.launch

/** What the screen shows; it survives the activity. */
class WritingModel(private val app: Application) : AndroidViewModel(app) {
    var modelName: String? by mutableStateOf(null)
        private set
    var memoryPlan: MemoryPlan? by mutableStateOf(null)
        private set
    var text: String by mutableStateOf("")
        private set
    var problem: String? by mutableStateOf(null)
        private set
    var opening: Boolean by mutableStateOf(false)
        private set
    var generating: Boolean by mutableStateOf(false)
        private set
    val busy: Boolean get() = opening || generating

    private var engine: Engine? = null
    private var chat: Chat? = null
    private var generation: Job? = null

    fun open(uri: Uri) {
        if (busy) return
        opening = true
        viewModelScope.launch {
            try {
                close()
                problem = null
                val resolver = app.contentResolver
                memoryPlan = Engine.plan(resolver, uri)
                val opened = Engine.open(resolver, uri, OpenOptions { memoryLimitBytes = freeBytes() })
                engine = opened
                chat = if (opened.canChat) opened.chat() else null
                modelName = opened.name
            } catch (e: NiwakiException) {
                problem = e.message
            } finally {
                opening = false
            }
        }
    }

    fun send(prompt: String) {
        if (busy) return
        val engine = engine ?: return
        val options = GenerateOptions { seed = System.nanoTime() }
        generating = true
        generation = viewModelScope.launch {
            try {
                problem = null
                text = ""
                val tokens: Flow<Token> = chat?.reply(prompt, options) ?: engine.generate(prompt, options)
                tokens.collect { text += it.text }
            } catch (e: NiwakiException) {
                problem = e.message
            } finally {
                generating = false
            }
        }
    }

    fun stop() {
        generation?.cancel()
    }

    override fun onCleared() = close()

    private fun close() {
        chat?.close()
        engine?.close()
        chat = null
        engine = null
        modelName = null
    }

    /** What the app may take without the system running short. */
    private fun freeBytes(): Long {
        val info = ActivityManager.MemoryInfo()
        (app.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(info)
        return maxOf(0, info.availMem - info.threshold)
    }
}
